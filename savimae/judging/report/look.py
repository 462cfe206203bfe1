"""What a report finds out anew: the classes of the videos, salient patches, examples, and what the
last checkpoint makes of hidden patches.

It looks at a bounded number of videos. What is gone or cannot be read is said and left out: the
report of a run outlives its videos.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from savimae.data.fitting import CROP, PAD, PRESS
from savimae.data.list_lines import NUMBERS, SEVERAL
from savimae.data.lists import Video, VideoList, find_videos, labels_of, names_digest
from savimae.judging.load import ClipOptions, Machine, MaskOptions, load_pretrained
from savimae.judging.neighbors import spread_queries
from savimae.judging.pictures import (
    PANEL_PX,
    draw_reconstruction,
    enlarged,
    image_of,
    outline_patches,
)
from savimae.judging.reconstruct import reconstruct_clip
from savimae.judging.report.html import (
    MOST_ROWS,
    Html,
    element,
    figure,
    folded,
    join,
    note,
    paragraphs,
    picture,
    table,
)
from savimae.judging.report.page import Looked
from savimae.judging.report.run import DAMAGED, PRETRAINING, Run, reading
from savimae.saliency.array_source import cut_name, find_cut
from savimae.saliency.config import CHANGE, FRAME_MEAN, SaliencyConfig
from savimae.samples.clips import Clip, ClipConfig, ClipReader
from savimae.samples.multi_view import spread_clips
from savimae.system.errors import SavimaeError, shown
from savimae.system.progress import Progress
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS

MOST_ARRAYS = 200  # videos whose arrays say which share of their patches is salient
MOST_CLIPS = 24  # videos of which a clip is decoded for that, where there are no arrays
EXAMPLES = 6
RECONSTRUCTED = 2
COLUMNS = 5  # frames of a reconstruction
AS_SEEN = {  # by what --fit says
    PRESS: "pressed into the shape of its input", CROP: "cropped to the shape of its input",
    PAD: "padded to the shape of its input",
}  # fmt: skip
KEY = np.uint64(0)  # breaks ties between tokens that change equally; nothing else is drawn


def look(run: Run, machine: Machine) -> Looked:
    """Look at the videos of a run, and let its last checkpoint reconstruct some of them.

    Raises:
        SavimaeError: files of the run that are not as commands write them.
    """
    with (
        reading(run.folder, DAMAGED),
        Progress("looking at the videos", delay_s=1.0) as progress,
    ):
        try:
            found = _find(run)
            looking = _Looking(run, found, progress)
        except SavimaeError as error:
            return Looked(note(f"The videos cannot be looked at: {error}"), Html(""))
        data = looking.data()
        if run.kind != PRETRAINING:
            return Looked(data, Html(""))
        progress.show(0.8, "reconstructing")
        return Looked(data, looking.reconstructions(machine))


def _find(run: Run) -> VideoList:
    """The videos as they are now.

    Raises:
        SavimaeError: they are gone, or cannot be listed.
    """
    start = run.starts[-1] if run.starts else {}
    data, root = start.get("data"), start.get("root")
    if not isinstance(data, str):
        raise SavimaeError("the log does not say where they are")
    path = run.find(data)
    if path is None:
        raise SavimaeError(f"{shown(data)} is no longer there")
    kind = {MULTILABEL: SEVERAL, REGRESS: NUMBERS}.get(run.settings.get("task", CLASSIFY))
    found = find_videos(
        path, run.find(root) if isinstance(root, str) else None, weigh=False, kind=kind
    )
    if not found.videos:
        raise SavimaeError(f"{shown(path)} holds none")
    return found


def _labels(video: Video) -> tuple[int, ...]:
    """The labels of a video, as far as it has any."""
    return () if video.labels is None and video.label is None else labels_of(video)


class _Share(NamedTuple):
    """How much of a video is salient: a share of its patches, or the change between its frames."""

    video: Video
    value: float


class _Looking:
    """A run with its videos. Raises SavimaeError for settings that are no run's."""

    def __init__(self, run: Run, found: VideoList, progress: Progress):
        self.run = run
        self.found = found
        self.progress = progress
        self.failed: list[str] = []
        start, settings, shape = run.starts[-1], run.settings, run.shape
        self.kind = settings.get("saliency_kind", FRAME_MEAN)
        root = start.get("saliency_root")
        self.arrays = None
        if settings.get("saliency") == "arrays" and isinstance(root, str):
            self.arrays = run.find(root)
            if self.arrays is None:
                self.failed.append(f"the arrays in {shown(root)} are no longer there")
        self.cut = 0
        if self.arrays is not None:
            try:
                self.cut = find_cut(self.arrays, [video.name for video in found.videos])
            except SavimaeError as error:
                self.failed.append(str(error))
                self.arrays = None
        try:
            saliency = SaliencyConfig(
                shape.input_size, shape.patch_size,
                settings.get("saliency_threshold", SaliencyConfig.threshold), self.kind,
                settings.get("salient_share", SaliencyConfig.share),
                settings.get("fit", PRESS),
            )  # fmt: skip
            clips = ClipConfig(
                shape.num_frames, settings["sampling_rate"], shape.input_size,
                fit=saliency.fit, patch_size=shape.patch_size,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise SavimaeError(f"the settings of the run are damaged ({error})") from error
        self.reader = ClipReader(clips, saliency, shape.tubelet_size, self.arrays, self.cut)

    def data(self) -> Html:
        """Classes with their share of salient patches, and examples."""
        is_pretraining = self.run.kind == PRETRAINING
        by_array = is_pretraining and self.arrays is not None
        by_clip = is_pretraining and not by_array and self.kind != CHANGE
        shares: list[_Share] = []
        clips = self._clips(MOST_CLIPS if by_clip else EXAMPLES)
        if by_array:
            shares = self._shares_of_arrays()
        elif by_clip:
            shares = [_Share(video, float(clip.saliency.mean())) for video, clip in clips]
        words = self._differs() + ([self._share_words(shares)] if is_pretraining else [])
        chosen = clips[:: max(1, math.ceil(len(clips) / EXAMPLES))]
        return join(
            paragraphs(*(each for each in words if each)),
            self._examples(chosen), self._classes(shares),
            *(note(f"Left out: {reason}.") for reason in dict.fromkeys(self.failed)),
        )  # fmt: skip

    def _differs(self) -> list[str]:
        """What has become of the list of videos since the training."""
        test = str(self.run.starts[-1].get("test"))
        if ", split " in test:
            return [f"Classes and examples are of the whole folder; training had those of {test}."]
        now, then = names_digest(self.found.videos), self.run.settings.get("videos")
        if now == then:
            return []
        return [
            f"The list is another one than that of the training: it has {len(self.found.videos):,} "
            f"videos now, and {self.run.number_of_videos()} then."
        ]

    def _spread(self, n: int) -> list[Video]:
        videos = self.found.videos
        return [videos[place] for place in spread_queries(videos, min(n, len(videos)))]

    def _shares_of_arrays(self) -> list[_Share]:
        assert self.arrays is not None
        found = []
        chosen = self._spread(MOST_ARRAYS)
        for number, video in enumerate(chosen):
            self.progress.show(0.3 + 0.5 * number / len(chosen), f"array {number}/{len(chosen)}")
            try:
                array = self.reader.arrays.load(cut_name(video.name, self.cut))
            except SavimaeError as error:
                self.failed.append(str(error))
                continue
            # Scores of change are in quarters of a gray level.
            value = array.mean() / 4 if self.kind == CHANGE else (array != 0).mean()
            found.append(_Share(video, float(value)))
        return found

    def _share_words(self, shares: Sequence[_Share]) -> str:
        settings = self.run.settings
        n = self.run.shape.n_tokens
        if self.kind == CHANGE:
            share = settings.get("salient_share", SaliencyConfig.share)
            words = f"Salient are the {share:.0%} of a clip's {n:,} tokens that change most."
            if not shares:
                return words
            mean = np.mean([each.value for each in shares])
            return (
                f"{words} Frames differ from those before them by {mean:.2f} of 255 gray levels on "
                f"average, over {self._looked(shares)}."
            )
        if not shares:
            return ""
        mean = np.mean([each.value for each in shares])
        what = "patches are salient, by arrays" if self.arrays else "tokens of a clip are salient"
        return f"{mean:.1%} of the {what}, over {self._looked(shares)}."

    def _looked(self, shares: Sequence[_Share]) -> str:
        n, of = len(shares), len(self.found.videos)
        return f"all {n:,} videos" if n == of else f"{n:,} of {of:,} videos that were looked at"

    def _classes(self, shares: Sequence[_Share]) -> Html:
        """A row for each class; nothing where the list has no labels."""
        names = self.found.classes
        labels = [_labels(video) for video in self.found.videos]
        known = sorted({label for of_video in labels for label in of_video})
        if len(known) < 2:
            return Html("")
        title = "change, gray levels" if self.kind == CHANGE else "salient"
        rows = [["class", "videos", *([title, "looked at"] if shares else [])]]
        for label in known:
            name = names[label] if label < len(names) else str(label)
            row = [name, f"{sum(label in of_video for of_video in labels):,}"]
            if shares:
                values = [each.value for each in shares if label in _labels(each.video)]
                mean = float(np.mean(values)) if values else None
                form = "{:.2f}" if self.kind == CHANGE else "{:.1%}"
                row += ["-" if mean is None else form.format(mean), str(len(values))]
            rows.append(row)
        if () in labels:
            rows.append(["no class", f"{labels.count(()):,}", *(["-", "0"] if shares else [])])
        listed = table("Videos by class", rows)
        if len(rows) <= MOST_ROWS:
            return listed
        return folded(f"{len(known)} classes", listed)

    def _clips(self, n: int) -> list[tuple[Video, Clip]]:
        """The middle clips of so many videos, spread over the classes."""
        found = []
        chosen = self._spread(n)
        for number, video in enumerate(chosen):
            self.progress.show(0.3 * number / len(chosen), f"clip {number}/{len(chosen)}")
            try:
                clip = self.reader.read(
                    video, KEY, lambda n: spread_clips(n, self.reader.config, 1)[0]
                )
            except SavimaeError as error:
                self.failed.append(str(error))
                continue
            found.append((video, clip))
        return found

    def _examples(self, clips: Sequence[tuple[Video, Clip]]) -> Html:
        """A frame of each clip; of pretraining, with its salient patches outlined."""
        outlined = self.run.kind == PRETRAINING
        figures = []
        for video, clip in clips:
            middle, grid = len(clip.pixels) // 2, self.run.shape.grid
            frame = enlarged(image_of(clip.pixels[middle]), PANEL_PX, Image.Resampling.BICUBIC)
            caption = shown(os.path.basename(video.name))
            if self._class_of(video):
                caption = f"{shown(self._class_of(video))}: {caption}"
            alt = f"A frame of {caption}"
            if outlined:
                salient = clip.saliency.reshape(-1, *grid)[middle // self.reader.tubelet_size]
                frame = outline_patches(frame, salient, frame.width // grid.width)
                if self.kind != CHANGE:  # of which every clip has the same share
                    caption += f"; {clip.saliency.mean():.0%} of the clip salient"
                alt += ", its salient patches outlined, the others faded"
            figures.append(figure(picture(frame, alt), caption))
        if not figures:
            return Html("")
        what = f"Frames as the model sees them, {AS_SEEN[self.reader.config.fit]}."
        if outlined:
            what = "Salient patches are outlined in yellow, the others faded."
        return join(element("div", *figures, class_="frames"), note(what))

    def _class_of(self, video: Video) -> str:
        names = self.found.classes
        if video.values is not None:
            return ", ".join(f"{value:g}" for value in video.values)
        return ", ".join(
            names[label] if label < len(names) else str(label) for label in _labels(video)
        )

    def reconstructions(self, machine: Machine) -> Html:
        """Clips with what the last checkpoint makes of their hidden patches."""
        run = self.run
        try:
            pretrained = load_pretrained(run.folder, machine.device)
            clips = pretrained.masked_clips(
                self._spread(RECONSTRUCTED), ClipOptions(saliency_root=self.arrays), MaskOptions(),
                self.cut,
            )  # fmt: skip
        except SavimaeError as error:
            return note(f"Its reconstructions cannot be drawn: {error}")
        figures = []
        for index, video in enumerate(clips.videos):
            try:
                of_clip = reconstruct_clip(pretrained, clips, index, machine)
            except SavimaeError as error:
                figures.append(note(f"Left out: {error}."))
                continue
            drawn, _ = draw_reconstruction(
                of_clip.clip, of_clip.result.pixels, of_clip.result.masked, run.shape.patch_size,
                run.shape.tubelet_size, "", "", COLUMNS,
            )  # fmt: skip
            name = shown(os.path.basename(video.name))
            alt = (
                f"Frames of {name}, its salient tokens, what was visible, what the model made of it"
            )
            words = "; ".join(of_clip.title.split("   "))
            figures.append(figure(picture(drawn, alt), f"{name}: {words}."))
        words = "The last checkpoint on clips of the training videos, masked as in training."
        if run.settings.get("decode") == "salient":
            words += " Losses here are over all hidden tokens; that of the run is over the salient."
        first, *others = figures
        more = folded("Another clip", join(*others)) if others else ""
        return join(paragraphs(words), first, more)
