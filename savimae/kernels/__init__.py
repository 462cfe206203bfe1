"""Compiled kernels. They do no I/O, know no files and import nothing else of this package.

- `luma`: color to gray.
- `resize`: bit-exact antialiased bilinear resizing of a gray plane.
- `patches`: patch extrema, saliency, and everything fused into one call per frame.
- `token_loss`: the error of predicted tokens, and its gradient.
- `reference`: the same in plain NumPy, the truth that tests hold the kernels against.

All kernels release the GIL and write into buffers that the caller passes.
"""
