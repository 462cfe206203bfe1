"""A clip's frames: crop, antialiased bilinear resizing and mirroring of RGB or gray, in one call.

Each channel goes through `resize`, as the gray planes do that saliency is computed from.
"""

from __future__ import annotations

from numba import uint8, uint32

from savimae.kernels._jit import jit
from savimae.kernels.resize import ResizeBuffers, resize


@jit
def split_channels(pixels, top, left, height, width, planes):
    """planes[c, y, x] = pixels[top + y, left + x, c]

    pixels uint8 [>= top + height, >= left + width, 3]; writes planes uint8 [3, height, width].
    """
    for y in range(height):
        row = pixels[top + y]
        red, green, blue = planes[0, y], planes[1, y], planes[2, y]
        for x in range(width):
            red[x] = row[left + x, 0]
            green[x] = row[left + x, 1]
            blue[x] = row[left + x, 2]


@jit
def resize_rgb(pixels, top, left, height, width, mirrored, buffers, planes, out):
    """Part of a frame -> out uint8 [H, W, 3], its columns reversed if `mirrored`.

    pixels uint8 [h, w, 3], C-contiguous; the part is [height, width] from (top, left). `buffers` as
    of `resize`; planes uint8 [3, height, width] is scratch.
    """
    split_channels(pixels, top, left, height, width, planes)
    out_height, out_width = out.shape[0], out.shape[1]
    gray = ResizeBuffers(*buffers).gray
    for channel in range(3):
        resize(planes[channel], height, width, buffers)
        for y in range(out_height):
            if mirrored:
                for x in range(out_width):
                    out[y, x, channel] = gray[y, out_width - 1 - x]
            else:
                for x in range(out_width):
                    out[y, x, channel] = gray[y, x]


@jit
def resize_gray(pixels, top, left, height, width, mirrored, buffers, planes, out):
    """Part of a gray frame -> out uint8 [H, W, 1]; else as `resize_rgb`.

    pixels uint8 [h, w, 1], C-contiguous; planes uint8 [1, height, width] is scratch.
    """
    for y in range(height):
        row, plane = pixels[top + y], planes[0, y]
        for x in range(width):
            plane[x] = row[left + x, 0]
    resize(planes[0], height, width, buffers)
    out_height, out_width = out.shape[0], out.shape[1]
    gray = ResizeBuffers(*buffers).gray
    for y in range(out_height):
        for x in range(out_width):
            out[y, x, 0] = gray[y, out_width - 1 - x if mirrored else x]


@jit
def luma_rgb(pixels, out):
    """out = (19595 R + 38470 G + 7471 B + 32768) >> 16

    pixels uint8 [h, w, 3]; writes out uint8 [h, w]. See `luma` for pixels of four bytes.
    """
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            weighted = (
                uint32(19595) * uint32(pixels[y, x, 0])
                + uint32(38470) * uint32(pixels[y, x, 1])
                + uint32(7471) * uint32(pixels[y, x, 2])
            )
            out[y, x] = uint8((weighted + uint32(32768)) >> uint32(16))
