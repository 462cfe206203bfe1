"""Every picture the tool draws.

Panels are pixel-exact images with captions in Pillow's own font; curves are matplotlib's.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from savimae.data.decoded import RGB
from savimae.data.fitting import place_frame
from savimae.data.stacks import with_channels
from savimae.data.video import open_video, write_video
from savimae.judging.curves import Curves, Smoothing, read_curves
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import frame_maps, video_patches
from savimae.samples.clips import Clip
from savimae.samples.masking import most_salient
from savimae.system.errors import SavimaeError, shown
from savimae.system.files import atomic_file
from savimae.system.progress import Progress
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS
from savimae.training.scores import MEASURED, form

PANEL_PX = 224  # longer side of a panel, at least; smaller frames are enlarged by a whole factor
GAP_PX = 8
MARGIN_PX = 12
FONT_PX = 15
TITLE_PX = 19
BACKGROUND = (255, 255, 255)
INK = (30, 30, 30)
BLANK = (200, 200, 200)  # where nothing was seen or predicted
OUTLINE = (255, 214, 0)  # yellow on a black rim: visible on bright and on dark ground
MAX_ANIMATION_FRAMES = 240
MOST_SCATTERED = 12  # numbers whose predictions are drawn against the true ones
MAX_NAMED = 30  # classes of a confusion matrix; of more only the colors are legible
ROWS = ["frame", "salient tokens", "encoder sees", "prediction", "both"]  # of a reconstruction
FRAMES_PER_S = 25.0  # where the source does not say
# Attention below and above its mean: two hues that those who see few colors tell apart as well, and
# the frame as it is between them, in gray.
BELOW, ABOVE = (0, 90, 200), (235, 70, 0)
MOST_COLOR = 0.75  # share of the color at the ends of the scale; the rest is the frame
SCALES = (2, 4, 8, 16, 32, 64)  # times the mean, and as much below it: ends of the scale of colors
WITHIN = 0.99  # share of the values that are to lie below its upper end
BAR_PX = (320, 16)
SHEET_PX = 120  # height of a panel of a sheet
FRAME_PX = 5
SAME = (0, 150, 70)
N_COLORS = 10  # of matplotlib's cycle; a map tells more classes apart by their markers
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*", "<", ">", "p")
LEGEND_ROWS, LEGEND_AREA = 38, 40
# Okabe and Ito's (2008), which most color-blind readers tell apart, without the yellow; then the
# same colors with other strokes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
STYLES = ("-", "--", "-.", ":")
PALE = 0.35  # opacity of what was logged behind its average
STRIP_PANELS = 8  # of an animation side by side
BLOCK_PANEL_PX, PAGE_PX = 192, 2000  # smallest panel of a sheet of blocks; width of its page
BETTER, WORSE = (0, 114, 178), (213, 94, 0)  # the first two of COLORS
BAR_SHARE, BAR_HIGH_PX = 0.45, 12


def inspect_video(
    path: str, out: str, config: SaliencyConfig, n_frames: int = 6, animation: str = "mp4"
) -> list[str]:
    """Draw what preprocessing sees in one video: frames, saliency maps, salient patches outlined.

    Args:
        path: a video file or a frame folder.
        out: the PNG to write; the animation lies beside it.
        config: how saliency is computed.
        n_frames: how many frames the PNG shows, evenly spaced.
        animation: "mp4", "gif" or "none".

    Returns:
        The files written.

    Raises:
        VideoError: a frame cannot be decoded.
    """
    patches = video_patches(open_video(path), config)
    total = len(patches)
    chosen = f"salient at threshold {config.threshold:g}"
    if config.kind == CHANGE:  # as if the whole video were one clip of tokens of one frame
        patches = most_salient(patches.reshape(-1), config.share, np.uint64(0)).reshape(
            patches.shape
        )
        chosen = "salient: those that change most; a clip of the training has its own"
    still = set(np.linspace(0, total - 1, min(n_frames, total)).round().astype(int).tolist())
    stride = math.ceil(total / MAX_ANIMATION_FRAMES)
    moving = set(range(0, total, stride)) if animation != "none" else set()

    columns: list[list[Image.Image]] = []
    captions: list[str] = []
    animated: list[np.ndarray] = []
    video = open_video(path)
    source_size = ""
    both = zip(video.rgb_frames(), frame_maps(open_video(path), config), strict=True)
    with Progress("drawing") as progress:
        for index, (rgb, saliency_map) in enumerate(both):
            progress.show((index + 1) / total, f"{index + 1}/{total} frames")
            source_size = f"{rgb.shape[1]}x{rgb.shape[0]}"
            if index not in still and index not in moving:
                continue
            panels = _panels(rgb, saliency_map, patches[index], config)
            caption = f"frame {index}: {patches[index].mean():.0%} salient"
            if index in still:
                columns.append(panels)
                captions.append(caption)
            if index in moving:
                animated.append(np.asarray(_filmstrip(panels, caption)))

    title = (
        f"{shown(os.path.basename(os.path.normpath(path)))}   {total} frames of {source_size}, "
        f"{patches.mean():.1%} of patches {chosen}"
    )
    middle = "change, 4 x" if config.kind == CHANGE else "saliency"
    grid = draw_grid(columns, title, captions, ["frame", middle, "salient patches"])
    write_picture(out, grid)
    written = [out]
    if animation != "none":
        target = os.path.splitext(out)[0] + "." + animation
        write_animation(target, animated, (video.frames_per_s or FRAMES_PER_S) / stride)
        written.append(target)
    return written


def _panels(
    rgb: np.ndarray, saliency_map: np.ndarray, patches: np.ndarray, config: SaliencyConfig
) -> list[Image.Image]:
    """Frame, saliency map, salient patches outlined: three images of one size."""
    height, width = config.sides
    factor = math.ceil(PANEL_PX / max(height, width))
    size = (width * factor, height * factor)
    part, place = place_frame(
        rgb.shape[0], rgb.shape[1], config.sides, config.patch_size, config.fit
    )
    seen = Image.fromarray(part.of(rgb)).resize(place[2:], Image.Resampling.BILINEAR)
    frame = Image.new("RGB", (width, height))
    frame.paste(seen, place[:2])
    frame = frame.resize(size, Image.Resampling.NEAREST)
    if config.kind == CHANGE:  # in quarters of a gray level, as the scores are
        saliency_map = np.minimum(saliency_map.astype(np.uint16) * 4, 255).astype(np.uint8)
    drawn_map = Image.fromarray(saliency_map).convert("RGB")
    patch_px = config.patch_size * factor
    return [
        frame,
        drawn_map.resize(size, Image.Resampling.NEAREST),
        outline_patches(frame, patches.astype(bool), patch_px),
    ]


def outline_patches(frame: Image.Image, chosen: np.ndarray, patch_px: int) -> Image.Image:
    """`frame` with the patches outside `chosen` (bool `[H_p, W_p]`) faded and its outline drawn."""
    pixels = np.asarray(frame).astype(np.float32)
    inside = np.kron(chosen, np.ones((patch_px, patch_px), bool))[..., None]
    faded = np.where(inside, pixels, 0.35 * pixels + 0.65 * 255)
    picture = Image.fromarray(faded.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    around = np.pad(chosen, 1)
    lines = []
    for row, column in np.argwhere(around[:-1, 1:-1] != around[1:, 1:-1]):
        lines.append((column, row, column + 1, row))
    for row, column in np.argwhere(around[1:-1, :-1] != around[1:-1, 1:]):
        lines.append((column, row, column, row + 1))
    limit = picture.width - 2, picture.height - 2
    for width, color in ((4, (0, 0, 0)), (2, OUTLINE)):
        for x0, y0, x1, y1 in lines:
            ends = [
                (min(max(x * patch_px, 1), limit[0]), min(max(y * patch_px, 1), limit[1]))
                for x, y in ((int(x0), int(y0)), (int(x1), int(y1)))
            ]
            draw.line(ends, fill=color, width=width)
    return picture


def draw_grid(
    columns: Sequence[Sequence[Image.Image]],
    title: str,
    column_captions: Sequence[str],
    row_captions: Sequence[str],
) -> Image.Image:
    """Panels of one size as a captioned grid: `columns` across, their panels down.

    Captions of rows may have several lines. Without a title there is no room for one.
    """
    panel_width, panel_height = columns[0][0].size
    font = ImageFont.load_default(FONT_PX)
    title_font = ImageFont.load_default(TITLE_PX)
    lines = [line for text in row_captions for line in text.split("\n")]
    left = MARGIN_PX + max(int(font.getlength(line)) for line in lines) + GAP_PX
    top = MARGIN_PX + (TITLE_PX + 2 * GAP_PX if title else 0) + FONT_PX + GAP_PX
    widest = max(math.ceil(font.getlength(text)) for text in column_captions)
    pitch = max(panel_width, widest) + GAP_PX  # of columns
    width = left + len(columns) * pitch - GAP_PX + MARGIN_PX
    width = max(width, int(title_font.getlength(title)) + 2 * MARGIN_PX)
    height = top + len(row_captions) * (panel_height + GAP_PX) - GAP_PX + MARGIN_PX
    picture = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN_PX, MARGIN_PX), title, fill=INK, font=title_font)
    for row, text in enumerate(row_captions):
        middle = top + row * (panel_height + GAP_PX) + panel_height // 2
        draw.text((MARGIN_PX, middle), text, fill=INK, font=font, anchor="lm")
    for column, (panels, text) in enumerate(zip(columns, column_captions, strict=True)):
        x = left + column * pitch + (pitch - GAP_PX - panel_width) // 2
        draw.text((x + panel_width // 2, top - GAP_PX), text, fill=INK, font=font, anchor="mb")
        for row, panel in enumerate(panels):
            picture.paste(panel, (x, top + row * (panel_height + GAP_PX)))
    return picture


def draw_reconstruction(
    clip: Clip,
    reconstructed: np.ndarray,
    masked: np.ndarray,
    patch_size: int,
    tubelet_size: int,
    name: str,
    title: str,
    n_columns: int = 6,
) -> tuple[Image.Image, list[np.ndarray]]:
    """Time across; down: frame, salient tokens, what the encoder saw, the prediction, both.

    Returns:
        The picture of some frames, and for every frame its panels side by side, for an animation.

    Args:
        clip: pixels uint8 `[T, H, W, C]` and salient tokens bool `[N]`.
        reconstructed: float32 `[T, H, W, C]` in 0 to 1, the clip's own where it was visible.
        masked: bool `[T, H, W]`, True = hidden from the encoder.
        name: of the video; stands before the title of the picture.
        title: mask and error; stands on the animation as well.
    """
    hidden_only = np.where(masked[..., None], reconstructed, np.float32(BLANK[0] / 255))
    return _draw_predictions(
        clip, masked, [hidden_only, reconstructed], ROWS, patch_size, tubelet_size, name, title,
        n_columns,
    )  # fmt: skip


def draw_side_by_side(
    clip: Clip,
    masked: np.ndarray,
    reconstructed: Sequence[np.ndarray],
    captions: Sequence[str],
    patch_size: int,
    tubelet_size: int,
    name: str,
    title: str,
    n_columns: int = 6,
) -> tuple[Image.Image, list[np.ndarray]]:
    """As `draw_reconstruction`, of several models: a row each, pasted into what was visible.

    Args:
        clip, masked, patch_size, tubelet_size, name, title: as there.
        reconstructed: of each model float32 `[T, H, W, C]` in 0 to 1.
        captions: what each model is called, in the first line, and what is said of it.
    """
    rows = [*ROWS[:3], *captions]
    return _draw_predictions(
        clip, masked, reconstructed, rows, patch_size, tubelet_size, name, title, n_columns
    )


def _draw_predictions(
    clip: Clip,
    masked: np.ndarray,
    predictions: Sequence[np.ndarray],
    rows: Sequence[str],
    patch_size: int,
    tubelet_size: int,
    name: str,
    title: str,
    n_columns: int,
) -> tuple[Image.Image, list[np.ndarray]]:
    """Frame, salient tokens and what the encoder saw, above `predictions` float `[T, H, W, C]`."""

    def below(index: int, _: Image.Image) -> list[Image.Image]:
        seen = blanked(clip.pixels[index], masked[index])
        return [_enlarged(each) for each in (seen, *(as_pixels(p[index]) for p in predictions))]

    columns = _columns(clip, patch_size, tubelet_size, below)
    names = ", ".join(row.split("\n")[0] for row in rows)
    animated = [
        np.asarray(_filmstrip(panels, f"{caption}: {names}", title)) for panels, caption in columns
    ]
    still = [columns[index] for index in _still(len(columns), n_columns)]
    panels, captions = zip(*still, strict=True)
    return draw_grid(panels, f"{name}   {title}".strip(), captions, rows), animated


def _columns(
    clip: Clip,
    patch_size: int,
    tubelet_size: int,
    below: Callable[[int, Image.Image], list[Image.Image]],
) -> list[tuple[list[Image.Image], str]]:
    """For each frame of a clip its panels and what it is called.

    Args:
        below: from the number of a frame, and the frame enlarged, the panels that follow the frame
            and its salient tokens.
    """
    salient = clip.saliency.reshape(-1, *_grid(clip, patch_size))
    columns = []
    for index, pixels in enumerate(clip.pixels):
        frame = _enlarged(pixels)
        outlined = outline_patches(
            frame, salient[index // tubelet_size], frame.width // salient.shape[2]
        )
        caption = f"frame {clip.frame_indices[index]}"
        columns.append(([frame, outlined, *below(index, frame)], caption))
    return columns


def _grid(clip: Clip, patch_size: int) -> tuple[int, int]:
    """H_p and W_p of a clip."""
    _, height, width, _ = clip.pixels.shape
    return height // patch_size, width // patch_size


def _enlarged(panel: np.ndarray) -> Image.Image:
    """A panel uint8 `[H, W, C]` by a whole factor, its longer side to PANEL_PX or more."""
    return enlarged(image_of(panel), PANEL_PX)


def enlarged(
    image: Image.Image, least_px: int, how: Image.Resampling = Image.Resampling.NEAREST
) -> Image.Image:
    """An image by a whole factor, its longer side to `least_px` or more."""
    factor = math.ceil(least_px / max(image.size))
    return image.resize((image.width * factor, image.height * factor), how)


def image_of(pixels: np.ndarray) -> Image.Image:
    """Pixels uint8 `[H, W, C]`, gray or RGB, as an image in RGB."""
    return Image.fromarray(with_channels(pixels, RGB))


def _still(n_frames: int, n_columns: int) -> list[int]:
    """Frames of a clip that a picture shows: spread evenly, each once."""
    spread = np.linspace(0, n_frames - 1, n_columns).round().astype(int)
    return [int(index) for index in np.unique(spread)]


def blanked(frame: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A frame uint8 `[H, W, C]`, gray at `where` bool `[H, W]`."""
    return np.where(where[..., None], np.array(BLANK, np.uint8), with_channels(frame, RGB))


def as_pixels(values: np.ndarray) -> np.ndarray:
    """Values of 0 to 1 as uint8."""
    return (values * 255).round().astype(np.uint8)


def gain_words(gain_db: float) -> str:
    """`+0.8 dB`; never -0.0."""
    return f"{round(gain_db, 1) + 0.0:+.1f} dB"


class Verdict(NamedTuple):
    """What is written below a prediction on a sheet."""

    text: str  # in one line
    psnr_db: float
    gain_db: float  # above the PSNR of means alone


class Block(NamedTuple):
    """A video on a sheet of reconstructions."""

    name: str
    panels: Sequence[np.ndarray]  # uint8 [H, W, C] each; those of a model have its size
    verdicts: Mapping[int, Verdict]  # below panels, by their number


def draw_blocks(
    blocks: Sequence[Block], title: str, captions: Sequence[str], notes: Sequence[str]
) -> Image.Image:
    """Videos, each with its panels beside each other, in as many columns as the page has room for.

    They are to be read as text is: from the left to the right, then down. Below a prediction a bar
    is as long as its gain, by one scale for the page; a loss of PSNR has the other color.

    Args:
        captions: above each panel of a video, the same for all.
    """
    font, title_font = ImageFont.load_default(FONT_PX), ImageFont.load_default(TITLE_PX)
    sizes = [enlarged(image_of(panel), BLOCK_PANEL_PX).size for panel in blocks[0].panels]
    side, panel_high = (max(each) for each in zip(*sizes, strict=True))
    wide = len(captions) * (side + GAP_PX) + 2 * GAP_PX
    high = panel_high + 2 * (FONT_PX + 5) + 3 * GAP_PX
    across = min(len(blocks), max(1, PAGE_PX // wide))
    top = MARGIN_PX + TITLE_PX + GAP_PX + len(notes) * (FONT_PX + 5) + 2 * GAP_PX + FONT_PX
    texts = [(title, title_font), *((note, font) for note in notes)]
    width = max(across * wide - 3 * GAP_PX, *(math.ceil(f.getlength(text)) for text, f in texts))
    height = top + math.ceil(len(blocks) / across) * high
    picture = Image.new("RGB", (width + 2 * MARGIN_PX, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN_PX, MARGIN_PX), title, fill=INK, font=title_font)
    for line, note in enumerate(notes):
        y = MARGIN_PX + TITLE_PX + GAP_PX + line * (FONT_PX + 5)
        draw.text((MARGIN_PX, y), note, fill=INK, font=font)
    gains = [verdict.gain_db for block in blocks for verdict in block.verdicts.values()]
    longest = max([1.0, *map(abs, gains)])
    for number, block in enumerate(blocks):
        down, column = divmod(number, across)
        left, y = MARGIN_PX + column * wide, top + down * high
        for index, (panel, caption) in enumerate(zip(block.panels, captions, strict=True)):
            x = left + index * (side + GAP_PX)
            if not down:
                text = _fitted(caption, font, side)
                draw.text((x, y - 5), text, fill=INK, font=font, anchor="ls")
            image = enlarged(image_of(panel), BLOCK_PANEL_PX)
            picture.paste(image, (x, y))
            if index in block.verdicts:
                _write_verdict(draw, (x, y + panel_high + 4), side, block.verdicts[index], longest)
        named = _fitted(block.name, font, 2 * side)
        draw.text((left, y + panel_high + 4), named, fill=INK, font=font)
    return picture


def _write_verdict(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], side: int, verdict: Verdict, longest_db: float
) -> None:
    """A line of words at a corner, and below it a bar as long as the gain, with its number."""
    x, y = at
    font = ImageFont.load_default(FONT_PX)
    draw.text((x, y), verdict.text, fill=INK, font=font)
    y += FONT_PX + 6
    color = BETTER if verdict.gain_db >= 0 else WORSE
    end = x + max(1, round(BAR_SHARE * side * abs(verdict.gain_db) / longest_db))
    draw.rectangle((x, y, end, y + BAR_HIGH_PX), fill=color)
    gain = f"{gain_words(verdict.gain_db)} ({verdict.psnr_db:.1f})"
    draw.text((end + 6, y + BAR_HIGH_PX // 2), gain, fill=color, font=font, anchor="lm")


def draw_attention(
    clip: Clip,
    factors: np.ndarray,
    rows: Sequence[str],
    patch_size: int,
    tubelet_size: int,
    name: str,
    title: str,
    n_columns: int = 6,
) -> tuple[Image.Image, list[np.ndarray]]:
    """Time across; down: frame, salient tokens, and attention over the frame, a row for each kind.

    Returns:
        The picture of some frames, and for every frame its panels side by side, for an animation.

    Args:
        clip: pixels uint8 `[T, H, W, C]` and salient tokens bool `[N]`.
        factors: float `[rows, N]`, the attention that tokens receive over its mean.
        rows: what each row of attention is called.
        name: of the video; stands before the title of the picture.
        title: which attention; stands on the animation as well.
    """
    scale = scale_of(factors)
    shades = shades_of(factors, scale).reshape(len(factors), -1, *_grid(clip, patch_size))
    bar = _color_bar(scale)
    columns = _columns(
        clip, patch_size, tubelet_size,
        lambda index, frame: [tint(frame, each[index // tubelet_size]) for each in shades],
    )  # fmt: skip
    row_captions = ["frame", "salient tokens", *rows]
    names = ", ".join(row_captions)
    animated = [
        np.asarray(above(_filmstrip(panels, f"{caption}: {names}", title), bar))
        for panels, caption in columns
    ]
    still = [columns[index] for index in _still(len(columns), n_columns)]
    panels, captions = zip(*still, strict=True)
    picture = draw_grid(panels, f"{name}   {title}", captions, row_captions)
    return above(picture, bar), animated


def scale_of(factors: np.ndarray) -> int:
    """The upper end of the scale of colors, one of SCALES: the first that nearly all lie below."""
    wanted = float(np.quantile(factors, WITHIN))
    return next((scale for scale in SCALES if scale >= wanted), SCALES[-1])


def shades_of(factors: np.ndarray, scale: int) -> np.ndarray:
    """Factors as places on the scale, -1 to 1: 0 for 1, 1 for `scale` and more, by logarithms."""
    return np.clip(np.log2(np.maximum(factors, 2.0**-30)) / math.log2(scale), -1, 1)


def tint(frame: Image.Image, shades: np.ndarray) -> Image.Image:
    """A frame in gray, its patches colored by `shades` `[H_p, W_p]`, -1 (BELOW) to 1 (ABOVE)."""
    side = frame.width // shades.shape[1]
    places = np.kron(shades, np.ones((side, side)))[..., None]
    gray = np.asarray(frame.convert("L"), np.float64)[..., None]
    share = MOST_COLOR * np.abs(places)
    mixed = (1 - share) * gray + share * np.where(places < 0, BELOW, ABOVE)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _color_bar(scale: int) -> Image.Image:
    """The scale of `tint` on middle gray, with its factors and what they are."""
    width, height = BAR_PX
    words = "attention received, as a multiple of the mean over the clip's tokens"
    font = ImageFont.load_default(FONT_PX)
    left = MARGIN_PX + math.ceil(
        font.getlength(f"1/{scale}") / 2
    )  # labels stand below their places
    total = left + width + 3 * MARGIN_PX + math.ceil(font.getlength(words)) + MARGIN_PX
    picture = Image.new("RGB", (total, height + 2 * FONT_PX + GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for x in range(width):
        pixel = tint(Image.new("L", (1, 1), 128), np.array([[2 * x / (width - 1) - 1]]))
        picture.paste(pixel.resize((1, height)), (left + x, 0))
    places = [("mean", 0.0)]
    for factor in sorted({2 ** (int(math.log2(scale)) // 2), scale} - {1}):
        place = math.log2(factor) / math.log2(scale)
        places += [(f"{factor} x", place), (f"1/{factor}", -place)]
    for text, place in places:
        x = left + round((width - 1) * (place + 1) / 2)
        draw.line((x, height, x, height + 4), fill=INK)
        draw.text((x, height + 4 + FONT_PX), text, fill=INK, font=font, anchor="ms")
    middle = left + width + 3 * MARGIN_PX, height // 2
    draw.text(middle, words, fill=INK, font=font, anchor="lm")
    return picture


def above(picture: Image.Image, below: Image.Image) -> Image.Image:
    """One picture above another, both sides even for H.264."""
    width = max(picture.width, below.width)
    height = picture.height + GAP_PX + below.height
    both = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    both.paste(picture, (0, 0))
    both.paste(below, (0, picture.height + GAP_PX))
    return both


class SheetPanel(NamedTuple):
    """A video on a sheet."""

    frame: np.ndarray  # uint8 [H, W, 3], of any size
    caption: str  # number or similarity, and class
    name: str
    is_marked: bool  # framed


def draw_sheet(
    rows: Sequence[Sequence[SheetPanel]], title: str, notes: Sequence[str]
) -> Image.Image:
    """Rows of videos: the query, apart from the others, then its neighbours.

    Frames keep their shape; all panels are as wide as the middle one of their shapes wants.
    """
    font = ImageFont.load_default(FONT_PX)
    title_font = ImageFont.load_default(TITLE_PX)
    shapes = [panel.frame.shape[1] / panel.frame.shape[0] for row in rows for panel in row]
    width = round(SHEET_PX * min(max(float(np.median(shapes)), 0.75), 16 / 9))
    across, down = width + 2 * FRAME_PX + GAP_PX, SHEET_PX + 2 * FRAME_PX + 3 * FONT_PX + 2 * GAP_PX
    apart = 3 * GAP_PX  # between the query and its neighbours
    top = MARGIN_PX + TITLE_PX + GAP_PX + len(notes) * 2 * FONT_PX + GAP_PX + FONT_PX + GAP_PX
    total = 2 * MARGIN_PX + max(map(len, rows)) * across - GAP_PX + apart
    texts = [(title, title_font), *((note, font) for note in notes)]
    total = max(total, *(math.ceil(face.getlength(text)) + 2 * MARGIN_PX for text, face in texts))
    picture = Image.new("RGB", (total, top + len(rows) * down + MARGIN_PX - 2 * GAP_PX), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN_PX, MARGIN_PX), title, fill=INK, font=title_font)
    for line, note in enumerate(notes):
        y = MARGIN_PX + TITLE_PX + GAP_PX + FONT_PX + line * 2 * FONT_PX
        draw.text((MARGIN_PX, y), note, fill=INK, font=font, anchor="lm")
    draw.text((MARGIN_PX, top - GAP_PX), "query", fill=INK, font=font, anchor="ls")
    left = MARGIN_PX + across + apart
    draw.text((left, top - GAP_PX), "nearest, from the left", fill=INK, font=font, anchor="ls")
    line_x = MARGIN_PX + across + (apart - GAP_PX) // 2
    draw.line((line_x, top, line_x, picture.height - MARGIN_PX), fill=BLANK, width=2)
    for row, panels in enumerate(rows):
        y = top + row * down
        for column, panel in enumerate(panels):
            x = MARGIN_PX + column * across + (apart if column else 0)
            image = Image.fromarray(panel.frame)
            factor = min(width / image.width, SHEET_PX / image.height)
            size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
            image = image.resize(size, Image.Resampling.BILINEAR)
            at = x + FRAME_PX + (width - size[0]) // 2, y + FRAME_PX + (SHEET_PX - size[1]) // 2
            picture.paste(image, at)
            if panel.is_marked:
                outer = (at[0] - FRAME_PX, at[1] - FRAME_PX)
                inner = (at[0] + size[0] + FRAME_PX - 1, at[1] + size[1] + FRAME_PX - 1)
                draw.rectangle((*outer, *inner), outline=SAME, width=FRAME_PX)
            below = y + SHEET_PX + 2 * FRAME_PX
            for line, text in enumerate((panel.caption, panel.name)):
                at = x + FRAME_PX, below + FONT_PX + line * (FONT_PX + 3)
                draw.text(at, _fitted(text, font, width), fill=INK, font=font, anchor="lm")
    return picture


def _fitted(text: str, font: Any, width: float) -> str:
    """`text` with as much of its middle left out as it takes to be no wider than `width`."""
    fitted, kept = text, len(text)
    while font.getlength(fitted) > width and kept > 2:
        kept -= 1
        fitted = f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"
    return fitted


def plot_map(
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    marked: Sequence[int],
    title: str,
    axes_titles: tuple[str, str],
    out: str,
) -> None:
    """Draw videos in the plane as a PNG, colored by class, with a legend.

    Args:
        places: float `[n, 2]`.
        labels: int `[n]`, of the classes `names`; -1 for none.
        marked: which are numbered, from 1.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    sizes = np.bincount(labels[labels >= 0], minlength=len(names))
    named = sorted(np.argsort(-sizes, kind="stable")[: len(MARKERS) * N_COLORS].tolist())
    others = ~np.isin(labels, named)
    n_entries = len(named) + bool(others.any() and named) + bool(marked)
    columns = math.ceil(n_entries / LEGEND_ROWS)
    figure = new_figure((8 + 1.7 * columns, 7.5))
    axes = figure.subplots()
    area = float(np.clip(12000 / len(places), 10, LEGEND_AREA))
    if others.any():
        n_more = len(names) - len(named)
        label = f"{n_more} other classes" if n_more else "no class" if named else None
        axes.scatter(
            *places[others].T, s=area, color="0.82" if named else "C0", linewidths=0, label=label
        )
    for number, index in enumerate(named):
        of_class = labels == index
        axes.scatter(
            *places[of_class].T, s=area, color=f"C{number % N_COLORS}", alpha=0.8, linewidths=0,
            marker=MARKERS[number // N_COLORS], label=shown(names[index]),
        )  # fmt: skip
    if marked:
        axes.scatter(
            *places[list(marked)].T, s=area + 60, facecolors="none", edgecolors="black",
            linewidths=1.5, label="queries, by row of the sheet",
        )  # fmt: skip
    for number, index in enumerate(marked, 1):
        axes.annotate(
            str(number), places[index], xytext=(7, 7), textcoords="offset points", weight="bold",
        )  # fmt: skip
    axes.set_title(title)
    axes.set_xlabel(axes_titles[0])
    axes.set_ylabel(axes_titles[1])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", "datalim")
    if n_entries:
        legend = figure.legend(loc="outside right upper", ncols=columns, fontsize="small")
        for handle in legend.legend_handles:
            handle.set_sizes([LEGEND_AREA])
    write_figure(figure, out)


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure. Raises SavimaeError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SavimaeError(
            "curves, matrices and maps need matplotlib; install it with `pip install "
            "'savimae[figures]'`"
        ) from None
    return Figure(figsize=size, layout="constrained")


def write_figure(figure: Any, out: str) -> None:
    """Write a figure as a PNG, atomically."""
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    with atomic_file(out) as file:
        file.write(encoded.getvalue())


def check_matplotlib() -> None:
    """Raises SavimaeError, with what to install, where matplotlib is missing."""
    new_figure((1, 1))


def has_matplotlib() -> bool:
    """Whether curves and matrices can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_confusion(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str, out: str
) -> None:
    """Draw a confusion matrix [true][predicted] as a PNG: shares of each true class.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    counts = np.array(confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = max(5.0, 0.45 * len(counts) + 2) if len(counts) <= MAX_NAMED else 10.0
    figure = new_figure((side + 1, side))
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(counts) <= MAX_NAMED:
        names = [shown(name) for name in [*classes, *map(str, range(len(classes), len(counts)))]]
        axes.set_xticks(range(len(counts)), names[: len(counts)], rotation=45, ha="right")
        axes.set_yticks(range(len(counts)), names[: len(counts)])
        for row, column in np.argwhere(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=color)
    write_figure(figure, out)


def plot_class_accuracy(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], title: str, out: str
) -> None:
    """Draw top-1 of each class as a PNG: dots, and the interval that so many videos leave open.

    The interval is Wilson's (1927), of 95 %. Classes are sorted by their top-1, the best on top.

    Args:
        confusion: [true class][predicted class], videos.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    counts = np.array(confusion)
    n, hits = counts.sum(1), counts.diagonal()
    order = sorted(np.flatnonzero(n).tolist(), key=lambda k: (hits[k] / n[k], n[k]))
    low, high = np.array([_wilson(int(hits[k]), int(n[k])) for k in order]).T
    share = hits[order] / n[order]
    figure = new_figure((7, min(30.0, 1.6 + 0.26 * len(order))))
    axes = figure.subplots()
    rows = np.arange(len(order))
    axes.hlines(rows, low, high, color="C0", alpha=0.4, linewidth=3)
    axes.plot(share, rows, "o", color="C0")
    total = hits.sum() / n.sum()
    axes.axvline(total, color="C7", linestyle="--", label=f"all videos: {total:.3f}")
    names = [shown(classes[k]) if k < len(classes) else str(k) for k in order]
    axes.set_yticks(rows, [f"{name} ({n[k]})" for name, k in zip(names, order, strict=True)])
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.set_xlabel("top-1 (line: interval of 95 %; in brackets: test videos)")
    axes.set_title(title)
    axes.legend(loc="lower right")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, out)


def _wilson(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of `hits` in `n`."""
    z = 1.96
    share, room = hits / n, z * z / n
    middle = (share + room / 2) / (1 + room)
    half = z / (1 + room) * math.sqrt(share * (1 - share) / n + room / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def plot_label_precision(
    of_label: Mapping[str, Mapping[str, Any]], n_videos: int, title: str, out: str
) -> None:
    """Draw the average precision of each label as a PNG, beside that of a guess.

    A guess that ranks videos at random gets about the share of videos that have the label. Labels
    are sorted, the best on top; those without videos in the test are left out.

    Args:
        of_label: as `test.json` holds it.
        n_videos: of the test.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    known = [(name, each) for name, each in of_label.items() if each["ap"] is not None]
    known.sort(key=lambda each: (each[1]["ap"], each[1]["videos"]))
    figure = new_figure((7, min(30.0, 1.6 + 0.26 * len(known))))
    axes = figure.subplots()
    rows = np.arange(len(known))
    precisions = np.array([each["ap"] for _, each in known])
    guesses = np.array([each["videos"] / n_videos for _, each in known])
    axes.hlines(rows, guesses, precisions, color="C0", alpha=0.4, linewidth=3)
    axes.plot(guesses, rows, "|", color="C7", markersize=12, label="by chance")
    axes.plot(precisions, rows, "o", color="C0", label="average precision")
    mean = precisions.mean()
    axes.axvline(mean, color="C7", linestyle="--", label=f"mean: {mean:.3f}")
    axes.set_yticks(rows, [f"{shown(name)} ({each['videos']})" for name, each in known])
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.7, len(known) - 0.3)
    axes.set_xlabel("average precision (in brackets: test videos that have the label)")
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    write_figure(figure, out)


def plot_values(result: Mapping[str, Any], out: str) -> None:
    """Draw predicted numbers against true ones as a PNG, a panel for each number.

    Args:
        result: as `test.json` holds it.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    true, predicted = (np.array(result[name], float) for name in ("true", "predicted"))
    names = list(result["of_value"])[:MOST_SCATTERED]
    across = min(len(names), 3)
    down = math.ceil(len(names) / across)
    figure = new_figure((4.6 * across, 4.6 * down))
    panels = figure.subplots(down, across, squeeze=False).flatten()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for k, (axes, name) in enumerate(zip(panels[: len(names)], names, strict=True)):
        both = np.concatenate([true[:, k], predicted[:, k]])
        room = 0.05 * (both.max() - both.min()) or 1.0
        ends = (both.min() - room, both.max() + room)
        axes.plot(ends, ends, color="C7", linestyle="--", linewidth=1, zorder=1)
        axes.scatter(true[:, k], predicted[:, k], s=18, alpha=0.6, linewidths=0)
        axes.set_xlim(ends)
        axes.set_ylim(ends)
        axes.set_aspect("equal")
        found = result["of_value"][name]
        words = ", ".join(
            f"{score.words} {form(found[score.name])}"
            for score in MEASURED[REGRESS].scores
            if found[score.name] is not None and score.name != "rmse"
        )
        _set_title(axes, f"{shown(name)}: {words}")
        axes.title.set_fontsize("small")
        axes.set_xlabel("true")
        axes.set_ylabel("predicted (dashed: as true)")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, out)


def draw_test(folder: str, result: Mapping[str, Any]) -> list[str]:
    """Draw the test of a classifier.

    Of classes its confusion matrix and the top-1 of each, of several labels the average precision
    of each, of numbers the predicted ones against the true ones.

    Args:
        folder: where the pictures go.
        result: as `test.json` holds it.

    Returns:
        The files written.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    n = result["videos"]
    if result.get("task") == REGRESS:
        written = [os.path.join(folder, "scatter.png")]
        plot_values(result, written[0])
        return written
    if result.get("task") == MULTILABEL:
        written = [os.path.join(folder, "precision.png")]
        title = f"{n} test videos, mAP {result['map']:.3f}"
        plot_label_precision(result["of_label"], n, title, written[0])
        return written
    title = f"{n} test videos, top-1 {result['top1']:.3f}"
    confusion, classes = result["confusion"], result["classes"]
    written = [os.path.join(folder, name) for name in ("confusion.png", "accuracy.png")]
    plot_confusion(confusion, classes, title, written[0])
    plot_class_accuracy(confusion, classes, title, written[1])
    return written


def plot_runs(runs: Sequence[str], out: str, smoothing: Smoothing | None = None) -> None:
    """Draw what the logs of runs hold, as a PNG; see `runs_figure`.

    Args:
        smoothing: of the curves; None: as `Smoothing` has it.

    Raises:
        UsageError, SavimaeError: as `read_curves`, or matplotlib is not installed.
    """
    write_figure(runs_figure(read_curves(runs), smoothing or Smoothing()), out)


def runs_figure(curves: Sequence[Curves], smoothing: Smoothing) -> Any:
    """Losses, accuracies and learning rate over the epochs; of one run also clips per second.

    Pretraining runs are on the left and classifiers on the right, each with epochs of their own.
    Losses that cannot be compared have panels of their own.

    Raises:
        SavimaeError: matplotlib is not installed.
    """
    colored = [
        (
            each,
            {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % 4]},
        )
        for number, each in enumerate(curves)
    ]
    columns = [
        [each for each in colored if each[0].is_classifier is kind] for kind in (False, True)
    ]
    columns = [column for column in columns if column]
    panels = [_panels_of(column) for column in columns]
    heights = [sum(height for height, _, _ in each) for each in panels]
    figure = new_figure((9 if len(columns) == 1 else 15, 1 + 1.15 * max(heights)))
    parts = figure.subfigures(1, len(columns), squeeze=False, wspace=0.03)[0]
    for part, column in zip(parts, panels, strict=True):
        ratios = [height for height, _, _ in column]
        all_axes = part.subplots(len(column), 1, sharex=True, squeeze=False, height_ratios=ratios)
        for axes, (_, draw, shown_runs) in zip(all_axes[:, 0], column, strict=True):
            draw(axes, shown_runs, smoothing)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        all_axes[-1, 0].set_xlabel("epoch")
        all_axes[-1, 0].set_xlim(left=0)
    return figure


Colored = tuple[Curves, dict[str, Any]]  # curves, and matplotlib's color and style for them


def _panels_of(column: Sequence[Colored]) -> list[tuple[int, Any, Sequence[Colored]]]:
    """The panels of a column from the top: height, what draws it, and its runs."""
    losses = dict.fromkeys(curves.loss for curves, _ in column)
    panels: list[tuple[int, Any, Sequence[Colored]]] = [
        (3, _draw_loss, [each for each in column if each[0].loss == loss]) for loss in losses
    ]
    if column[0][0].is_classifier:
        for task in dict.fromkeys(curves.task for curves, _ in column):
            panels.append((3, _draw_scores, [each for each in column if each[0].task == task]))
    panels.append((1, _draw_rate, column))
    if len(column) == 1 and column[0][0].has("clips_per_s"):
        panels.append((1, _draw_speed, column))
    return panels


def _draw_loss(axes: Any, runs: Sequence[Colored], smoothing: Smoothing) -> None:
    """A panel of losses that can be compared, with that of means alone."""
    words, of_means = runs[0][0].loss
    is_smoothed = False
    for curves, look in runs:
        is_smoothed |= _draw_series(axes, curves, "loss", smoothing, curves.name, **look)
    (curves, look), *others = runs
    if not others and curves.has("loss_salient") and curves.has("loss_other"):
        for key, stroke, label in (
            ("loss_salient", "--", "salient tokens"), ("loss_other", ":", "other tokens"),
        ):  # fmt: skip
            thin = {**look, "linestyle": stroke, "linewidth": 1}
            _draw_series(axes, curves, key, smoothing, label, **thin)
    if of_means is not None:
        axes.axhline(
            of_means, color="0.35", linewidth=0.9, linestyle=(0, (9, 3)),
            label=f"means alone: {of_means:.3f}",
        )  # fmt: skip
    _set_title(axes, words)
    axes.set_ylabel("loss")
    averaged = f"averages over {smoothing.words};\npale: as logged"
    _draw_legend(axes, averaged if is_smoothed else None)


def _draw_scores(axes: Any, runs: Sequence[Colored], smoothing: Smoothing) -> None:
    """Scores of classifiers of one task: in training as lines, in the test as marks."""
    task = runs[0][0].task or CLASSIFY
    measured = MEASURED[task]
    training, score = measured.training, measured.scores[0]
    for curves, look in runs:
        name = "" if len(runs) == 1 else f"{curves.name}, "
        if curves.has(training.name):
            train = {**look, "linestyle": "--"}
            words = "" if training.words == score.words else f", {training.words}"
            label = f"{name}training{words}"
            _draw_series(axes, curves, training.name, smoothing, label, **train)
        if curves.tests:
            epochs, values = curves.scores(score.name)
            axes.plot(epochs, values, marker="o", label=f"{name}test: {form(values[-1])}", **look)
    _set_title(axes, f"{score.words}: {measured.of_what}")
    axes.set_ylabel(score.words)
    if task == REGRESS:
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(0, 1.02)
    _draw_legend(axes, None)


def _draw_rate(axes: Any, runs: Sequence[Colored], smoothing: Smoothing) -> None:
    del smoothing
    for curves, look in runs:
        _draw_series(axes, curves, "lr", None, curves.name, **look)
    axes.set_ylabel("learning rate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", scilimits=(-2, 2))


def _draw_speed(axes: Any, runs: Sequence[Colored], smoothing: Smoothing) -> None:
    """Clips per second, and how many it would be if nothing waited for clips."""
    ((curves, look),) = runs
    _draw_series(axes, curves, "clips_per_s", smoothing, curves.name, **look)
    if curves.has("data_wait_share"):
        waiting = np.clip(np.nan_to_num(curves.values("data_wait_share")), 0, 0.99)
        epochs, logged, speed = curves.series("clips_per_s", smoothing)
        unhindered = logged / (1 - waiting)
        ends = curves.averaged(unhindered, smoothing)
        axes.fill_between(
            epochs, logged if speed is None else speed, unhindered if ends is None else ends,
            color=look["color"], alpha=0.2, linewidth=0,
        )  # fmt: skip
        _set_title(axes, f"shaded: lost to waiting for clips, {waiting.mean():.1%} of the time")
    axes.set_ylabel("clips/s")
    axes.set_ylim(bottom=0)


def _draw_series(
    axes: Any, curves: Curves, key: str, smoothing: Smoothing | None, label: str, **look: Any
) -> bool:
    """A curve, over a pale one of what was logged if it is an average; whether it is."""
    epochs, logged, smoothed = curves.series(key, smoothing)
    if smoothed is not None:
        axes.plot(epochs, logged, **{**look, "alpha": PALE, "linewidth": 0.8}, zorder=1.5)
    drawn = logged if smoothed is None else smoothed
    is_dot = np.isfinite(drawn).sum() == 1
    axes.plot(epochs, drawn, marker="o" if is_dot else None, label=_legible(label), **look)
    return smoothed is not None


def _legible(label: str) -> str:
    """matplotlib leaves names that begin with _ out of legends."""
    return f" {label}" if label.startswith("_") else label


def _set_title(axes: Any, words: str) -> None:
    axes.set_title(words, loc="left", fontsize="medium").set_parse_math(False)


def _draw_legend(axes: Any, title: str | None) -> None:
    """A legend whose names mean what they say, $ too."""
    legend = axes.legend(title=title, fontsize="small", title_fontsize="small")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _filmstrip(panels: Sequence[Image.Image], *captions: str) -> Image.Image:
    """One animation frame: panels side by side over lines of text, both sides even for H.264.

    More than STRIP_PANELS are set in lines of as many panels each as nearly as can be.
    """
    panel_width, panel_height = panels[0].size
    font = ImageFont.load_default(FONT_PX)
    lines = math.ceil(len(panels) / STRIP_PANELS)
    across = math.ceil(len(panels) / lines)
    width = across * (panel_width + GAP_PX) - GAP_PX
    width = max(width, *(math.ceil(font.getlength(text)) + 2 * GAP_PX for text in captions))
    bottom = lines * (panel_height + GAP_PX) - GAP_PX
    height = bottom + 2 * FONT_PX * len(captions)
    picture = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
    for index, panel in enumerate(panels):
        line, place = divmod(index, across)
        at = place * (panel_width + GAP_PX), line * (panel_height + GAP_PX)
        picture.paste(panel, at)
    draw = ImageDraw.Draw(picture)
    for index, text in enumerate(captions):
        middle = bottom + (2 * index + 1) * FONT_PX
        draw.text((GAP_PX, middle), text, fill=INK, font=font, anchor="lm")
    return picture


def write_picture(path: str, picture: Image.Image) -> None:
    """Write a PNG, atomically."""
    encoded = imageio.imwrite("<bytes>", np.asarray(picture), extension=".png")
    with atomic_file(path) as file:
        file.write(encoded)


def write_animation(path: str, frames: Sequence[np.ndarray], frames_per_s: float) -> None:
    """Write uint8 `[height, width, 3]` frames (even sides) as GIF or as MP4, atomically."""
    stack = np.stack(frames)
    if not path.endswith(".gif"):
        write_video(path, stack, frames_per_s, "libx264")
        return
    encoded = imageio.imwrite(
        "<bytes>", stack, extension=".gif", duration=1000 / frames_per_s, loop=0
    )
    with atomic_file(path) as file:
        file.write(encoded)
