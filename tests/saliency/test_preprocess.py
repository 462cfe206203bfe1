"""The walk over a data set, through the command line and real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media import encode, moving_frames, random_bytes, savimae, truncate, write_frames
from PIL import Image

from savimae.data.lists import Video, find_videos, read_list
from savimae.data.shards import Shard, shard_videos
from savimae.data.video import VideoFile, open_video
from savimae.saliency import preprocess
from savimae.saliency.config import SaliencyConfig, mostly_salient
from savimae.saliency.frames import video_patches
from savimae.saliency.makers import ArrayMaker
from savimae.system import workers
from savimae.system.signals import EndedBySignals

CONFIG = SaliencyConfig()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes; video files and a frame folder, at two depths."""
    root = tmp_path / "source"
    encode(root / "Archery/v_Archery_g01_c01.avi", moving_frames(12))
    encode(root / "Archery/v_Archery_g01_c02.mp4", moving_frames(7), "libx264")
    write_frames(root / "Bowling/v_Bowling_g02_c01", moving_frames(5))
    encode(root / "Bowling/more/deep.video.mkv", moving_frames(300, 32, 32), "libx264")
    (root / "README.txt").write_text("not a video")
    return root


def arrays(out: Path) -> dict[str, np.ndarray]:
    return {
        str(path.relative_to(out)): np.load(path, allow_pickle=False)
        for path in sorted(out.rglob("*.npy"))
    }


def leftovers(out: Path) -> list[Path]:
    return list(out.rglob("*.savimae-tmp*"))


def test_mirrors_the_source(source, tmp_path):
    out = tmp_path / "out"
    done = savimae("preprocess", source, out, "--list", tmp_path / "list.txt")
    assert done.returncode == 0, done.stderr
    found = arrays(out)
    assert {name: array.shape[0] for name, array in found.items()} == {
        "Archery/v_Archery_g01_c01.npy": 12,
        "Archery/v_Archery_g01_c02.npy": 7,
        "Bowling/more/deep.video.npy": 300,  # more than one chunk
        "Bowling/v_Bowling_g02_c01.npy": 5,
    }
    for name, path in (
        ("Archery/v_Archery_g01_c01.npy", "Archery/v_Archery_g01_c01.avi"),
        ("Bowling/v_Bowling_g02_c01.npy", "Bowling/v_Bowling_g02_c01"),
        ("Bowling/more/deep.video.npy", "Bowling/more/deep.video.mkv"),
    ):
        expected = video_patches(open_video(str(source / path)), CONFIG)
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == np.uint8
    share = sum(array.sum() for array in found.values()) / sum(a.size for a in found.values())
    assert "4 videos, 324 frames" in done.stdout
    assert f"{share:.1%} of patches salient, 0 failed" in done.stdout
    assert "warning" not in done.stderr
    assert "1 files that are neither videos nor frames" in done.stderr
    listed = read_list(str(tmp_path / "list.txt"))
    assert [(video.name, video.label) for video in listed.videos] == [
        ("Archery/v_Archery_g01_c01", 0),
        ("Archery/v_Archery_g01_c02", 0),
        ("Bowling/more/deep.video", 2),
        ("Bowling/v_Bowling_g02_c01", 1),
    ]
    assert listed.classes == ["Archery", "Bowling", "Bowling/more"]
    assert not (out / "failures.jsonl").exists()


def test_float32_for_the_published_trainer(source, tmp_path):
    out, plain = tmp_path / "out", tmp_path / "plain"
    assert savimae("preprocess", source, out, "--dtype", "float32").returncode == 0
    assert savimae("preprocess", source, plain).returncode == 0
    for name, array in arrays(plain).items():
        other = np.load(out / name)
        assert other.dtype == np.float32
        np.testing.assert_array_equal(other, array)


def test_options_reach_the_kernel(source, tmp_path):
    out = tmp_path / "out"
    options = ["--input_size", "96", "--patch_size", "8", "--threshold", "0.25", "--limit", "2"]
    assert savimae("preprocess", source, out, *options).returncode == 0
    found = arrays(out)
    assert list(found) == ["Archery/v_Archery_g01_c01.npy", "Archery/v_Archery_g01_c02.npy"]
    video = VideoFile(str(source / "Archery/v_Archery_g01_c01.avi"))
    expected = video_patches(video, SaliencyConfig(96, 8, 0.25))
    np.testing.assert_array_equal(found["Archery/v_Archery_g01_c01.npy"], expected)


def test_one_video_and_one_frame_folder(source, tmp_path):
    for path, name, frames in (
        ("Archery/v_Archery_g01_c01.avi", "v_Archery_g01_c01.npy", 12),
        ("Bowling/v_Bowling_g02_c01", "v_Bowling_g02_c01.npy", 5),
    ):
        out = tmp_path / name
        assert savimae("preprocess", source / path, out).returncode == 0
        assert {key: len(array) for key, array in arrays(out).items()} == {name: frames}


def test_resumes_and_redoes_what_is_not_whole(source, tmp_path):
    out = tmp_path / "out"
    assert savimae("preprocess", source, out).returncode == 0
    before = arrays(out)
    whole, cut, gone = (out / name for name in list(before)[:3])
    untouched = whole.stat().st_mtime_ns
    truncate(cut, 0.7)
    gone.unlink()
    (cut.parent / ".hidden").touch()  # somebody else's hidden file
    done = savimae("preprocess", source, out)
    assert done.returncode == 0
    assert "2 videos" in done.stdout
    assert "2 were there already" in done.stdout
    assert whole.stat().st_mtime_ns == untouched
    for name, array in arrays(out).items():
        np.testing.assert_array_equal(array, before[name])
    done = savimae("preprocess", source, out, "--overwrite")
    assert "4 videos, 324 frames" in done.stdout
    assert whole.stat().st_mtime_ns > untouched


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"random bytes" * 100])
def test_a_foreign_file_in_place_of_an_array_is_redone(source, tmp_path, content):
    out = tmp_path / "out"
    target = out / "Archery/v_Archery_g01_c01.npy"
    target.parent.mkdir(parents=True)
    target.write_bytes(content)
    assert savimae("preprocess", source, out).returncode == 0
    assert np.load(target).shape == (12, 14, 14)


def test_a_data_set_that_is_mostly_salient_is_warned_about(source, tmp_path):
    video = source / "Bowling/v_Bowling_g02_c01"
    done = savimae("preprocess", video, tmp_path / "out", "--threshold", "0")
    assert "warning: 100.0% of the patches are salient, so that savi masks differ" in done.stderr
    assert mostly_salient(0.75, "patches") is None


def test_other_parameters_are_refused(source, tmp_path):
    out = tmp_path / "out"
    assert savimae("preprocess", source, out).returncode == 0
    config = json.loads((out / "config.json").read_text())
    assert config["threshold"] == 0.5
    assert config["input_size"] == 224
    before = arrays(out)
    done = savimae("preprocess", source, out, "--threshold", "0.3", "--dtype", "float32")
    assert done.returncode == 2
    assert "dtype is 'uint8' there and 'float32' here" in done.stderr
    assert "threshold is 0.5 there and 0.3 here" in done.stderr
    assert done.stderr.count("\n") == 1
    assert savimae("saliency", source, out).returncode == 2
    for name, array in arrays(out).items():
        np.testing.assert_array_equal(array, before[name])
    random_bytes(out / "config.json")
    done = savimae("preprocess", source, out)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "config.json: not a savimae config" in done.stderr


def test_failures_are_named_and_the_run_goes_on(source, tmp_path):
    out = tmp_path / "out"
    odd = "spaces 'quotes' \"double\" new\nline ü $HOME.avi"
    random_bytes(source / "Archery" / odd)
    (source / "Archery/empty.mp4").touch()
    truncate(encode(source / "Archery/cut.avi", moving_frames(40)), 0.5)
    (source / "Nothing").mkdir()
    write_frames(source / "Gap", moving_frames(4))
    (source / "Gap/img_00002.jpg").unlink()
    done = savimae("preprocess", source, out, "--list", tmp_path / "list.txt")
    assert done.returncode == 1
    assert "4 videos, 324 frames" in done.stdout
    assert "5 failed" in done.stdout
    assert len(arrays(out)) == 4
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    reasons = {os.path.relpath(entry["path"], source): entry["reason"] for entry in failures}
    assert reasons.pop(f"Archery/{odd}").startswith("not decodable")
    assert reasons.pop("Archery/cut.avi").startswith(("damaged", "frame", "truncated", "not dec"))
    assert reasons == {
        "Archery/empty.mp4": "an empty file",
        "Nothing": "an empty folder: no videos and no frames",
        "Gap": "a frame is missing between img_00001.jpg and img_00003.jpg; extract it again",
    }
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(lines) == 5
    assert sum("new\\nline ü" in line for line in lines) == 1
    assert len(read_list(str(tmp_path / "list.txt")).videos) == 4
    assert not leftovers(out)
    # What was mended is done by the next run, and the failures are those of that run.
    encode(source / "Archery/empty.mp4", moving_frames(3), "libx264")
    done = savimae("preprocess", source, out)
    assert "1 videos, 3 frames" in done.stdout
    assert len((out / "failures.jsonl").read_text().splitlines()) == 4


def test_names_of_every_kind(tmp_path):
    names = ["a b", "quo'te", 'dou"ble', "new\nline", "ünï", "$HOME", "-dash", "#hash", "%d", "a:b"]
    source, out = tmp_path / "source", tmp_path / "out"
    plain = encode(tmp_path / "plain.avi", moving_frames(3)).read_bytes()
    for name in names:
        (source / f"Cla ss/{name}.avi").parent.mkdir(parents=True, exist_ok=True)
        (source / f"Cla ss/{name}.avi").write_bytes(plain)
    with open(os.fsencode(source / "Cla ss") + b"/\xff\xfe.avi", "wb") as file:  # not UTF-8
        file.write(plain)
    done = savimae("preprocess", source, out)
    assert done.returncode == 0, done.stderr
    found = {path.name for path in out.rglob("*.npy")}
    assert found == {f"{name}.npy" for name in names} | {"\udcff\udcfe.npy"}


def test_unreadable_files_and_folders(source, tmp_path, monkeypatch):
    # Tests may run as root, who reads everything: the system's answer is put in by hand.
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(workers, "_counter", workers.Counter([0.0, 0.0]))
    video = Video(str(source / "Archery/v_Archery_g01_c01.avi"), "x")
    for function in ("av.open", "os.path.getsize"):
        with monkeypatch.context() as patch:
            patch.setattr(function, refused)
            work = preprocess._Work(ArrayMaker(CONFIG), video, str(tmp_path / "out/x.npy"))
            assert work() == "Permission denied"
    frames = Video(str(source / "Bowling/v_Bowling_g02_c01"), "y")
    monkeypatch.setattr("PIL.Image.open", refused)
    work = preprocess._Work(ArrayMaker(CONFIG), frames, str(tmp_path / "out/y.npy"))
    assert work() == "Permission denied"
    monkeypatch.setattr(os, "scandir", refused)
    found = find_videos(str(source))
    assert (found.videos, found.unreadable) == ([], [(str(source), "Permission denied")])
    assert not leftovers(tmp_path)


LIMITED = """
import resource, sys
from savimae.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))  # writes past it fail, as on a full disk
sys.argv = ["savimae", *sys.argv[1:]]
main()
"""


def test_a_full_disk_stops_the_run_and_loses_nothing(source, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", LIMITED, "preprocess", source, out, "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1  # 300 frames of 196 bytes do not fit
    assert "free some space and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not leftovers(out)
    assert "Bowling/more/deep.video.npy" not in arrays(out)  # loads every other one
    done = savimae("preprocess", source, out)
    assert done.returncode == 0
    assert len(arrays(out)) == 4


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_at_any_moment(tmp_path, sent):
    source, out = tmp_path / "source", tmp_path / "out"
    plain = encode(tmp_path / "plain.avi", moving_frames(120)).read_bytes()
    for index in range(60):
        (source / f"c/{index:03}.avi").parent.mkdir(parents=True, exist_ok=True)
        (source / f"c/{index:03}.avi").write_bytes(plain)
    command = [sys.executable, "-m", "savimae", "preprocess", source, out]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list(out.glob("c/*.npy"))) < 3 and run.poll() is None:
        pass
    os.kill(run.pid, sent)
    stderr = run.communicate(timeout=60)[1]
    assert run.returncode == {
        signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130
    }[sent]  # fmt: skip
    assert "Traceback" not in stderr
    # The workers go with their parent.
    while any(str(out) in line for line in command_lines()):
        pass
    n_before = len(arrays(out))  # loads them: all are whole
    assert 3 <= n_before < 60
    if sent != signal.SIGKILL:
        assert not leftovers(out)
    done = savimae("preprocess", source, out)
    assert f"{n_before} were there already" in done.stdout
    found = arrays(out)
    assert len(found) == 60
    assert all((array == found["c/000.npy"]).all() for array in found.values())
    assert not leftovers(out)


@pytest.mark.parametrize(
    ("sent", "ending", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGUSR1, SystemExit, 85),
     (signal.SIGTERM, SystemExit, 143)],
)  # fmt: skip
def test_a_signal_raises_where_it_is_asked_for_only(sent, ending, code):
    before = signal.getsignal(sent)
    with EndedBySignals() as ended:
        ended.check()
        os.kill(os.getpid(), sent)
        for _ in range(1000):  # the handler runs here
            pass
        with pytest.raises(ending) as raised:
            ended.check()
        # Who is asked twice by the keyboard ends at once.
        assert (signal.getsignal(sent) == signal.SIG_DFL) == (sent == signal.SIGINT)
    assert getattr(raised.value, "code", None) == code
    assert signal.getsignal(sent) == before


def command_lines() -> list[str]:
    """Command lines of all live processes."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return lines


def test_shards_partition_and_balance():
    rng = np.random.default_rng(0)
    videos = [
        Video(f"/{i}", f"c/{i:05}", cost=int(c)) for i, c in enumerate(rng.gamma(2, 1e6, 5000))
    ]
    parts = [shard_videos(videos, Shard(index, 64)) for index in range(64)]
    assert sorted(video.name for part in parts for video in part) == [v.name for v in videos]
    loads = [sum(video.cost for video in part) for part in parts]
    assert max(loads) < 1.01 * min(loads)
    shuffled = [videos[i] for i in rng.permutation(len(videos))]
    assert {v.name for v in shard_videos(shuffled, Shard(7, 64))} == {v.name for v in parts[7]}
    assert [len(shard_videos(videos[:3], Shard(index, 5))) for index in range(5)] == [1, 1, 1, 0, 0]
    nameless = [Video(str(i), str(i)) for i in range(10)]  # no cost known: by count
    assert sorted(len(shard_videos(nameless, Shard(index, 3))) for index in range(3)) == [3, 3, 4]


@pytest.mark.parametrize("text", ["3", "3/", "/3", "-1/3", "3/3", "a/b", "1/2/3", ""])
def test_malformed_shards(text):
    with pytest.raises(ValueError, match="0 <= I < N"):
        Shard.parse(text)


def test_shards_on_the_command_line(source, tmp_path):
    out = tmp_path / "out"
    random_bytes(source / "Archery/bad.avi")
    (source / "Nothing").mkdir()
    codes = [savimae("preprocess", source, out, "--shard", f"{i}/3").returncode for i in range(3)]
    assert len(arrays(out)) == 4
    failures = sorted(path.name for path in out.glob("failures*"))
    # The empty folder is the first shard's to report; the bad file belongs to one of the three.
    assert "failures-0-of-3.jsonl" in failures
    lines = [line for path in out.glob("failures*") for line in path.read_text().splitlines()]
    entries = [json.loads(line) for line in lines]
    assert sorted(Path(entry["path"]).name for entry in entries) == ["Nothing", "bad.avi"]
    assert codes[0] == 1
    assert sum(codes) == len(failures)


CRASH = """
import os, sys
from savimae.saliency import preprocess
make = preprocess.ArrayMaker.make
def crash(self, video, target):
    if "c02" in video.name:
        os.kill(os.getpid(), 11)
    return make(self, video, target)
preprocess.ArrayMaker.make = crash
"""


def test_a_worker_that_dies_fails_its_video_only(source, tmp_path, monkeypatch):
    # The patched module is what the workers import.
    (tmp_path / "crash.py").write_text(CRASH)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import crash\n"
        "if __name__ == '__main__':\n    from savimae.cli import main; main()\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    out = tmp_path / "out"
    command = [sys.executable, script, tmp_path, "preprocess", source, out, "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "v_Archery_g01_c02.mp4: the process that worked on it died" in done.stderr
    assert "3 videos" in done.stdout
    assert len(arrays(out)) == 3


MEMORY = """
import resource, sys
from savimae.saliency.arrays import write_array
from savimae.saliency.config import SaliencyConfig, mostly_salient
from savimae.kernels.patches import compile_kernels
from savimae.saliency.frames import patch_chunks
from savimae.data.video import open_video
config = SaliencyConfig()
compile_kernels()
peaks = []
for path in sys.argv[2:]:
    chunks = patch_chunks(open_video(path), config)
    frames, _ = write_array(sys.argv[1], chunks, config.grid, "uint8")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(frames, peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_length(tmp_path):
    # An hour at 25 frames/s; its array alone is 17.6 MB.
    frame = moving_frames(1, 32, 32)
    short = encode(tmp_path / "short.avi", np.repeat(frame, 500, 0))
    long = encode(tmp_path / "long.avi", np.broadcast_to(frame, (90_000, *frame.shape[1:])))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "x.npy", short, long],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    n_frames, growth_kib = map(int, done.stdout.split())
    assert n_frames == 90_000
    assert growth_kib < 5000  # FFmpeg's index of the packets takes 2 to 3 MB


@pytest.mark.parametrize("kind", ["frame-mean", "change"])
def test_the_two_steps_equal_the_fused_one(source, tmp_path, kind):
    maps, two, one = (tmp_path / name for name in ("maps", "two", "one"))
    assert savimae("saliency", source, maps, "--saliency", kind).returncode == 0
    assert savimae("patches", maps, two, "--saliency", kind).returncode == 0
    done = savimae("preprocess", source, one, "--saliency", kind)
    assert done.returncode == 0
    # Of change, what is salient is decided for each clip.
    assert "warning" not in done.stderr
    assert ("of patches salient" in done.stdout) == (kind == "frame-mean")
    recorded = json.loads((one / "config.json").read_text())
    assert recorded.get("saliency") == (None if kind == "frame-mean" else kind)
    assert ("threshold" in recorded) == (kind == "frame-mean")
    names = sorted(path.name for path in (maps / "Bowling/v_Bowling_g02_c01").iterdir())
    assert names == [f"img_{index:05}.png" for index in range(1, 6)]
    assert len(list((maps / "Bowling/more/deep.video").iterdir())) == 300
    assert arrays(one).keys() == arrays(two).keys()
    for name, array in arrays(one).items():
        np.testing.assert_array_equal(np.load(two / name), array)
        assert (array.max() > 1) == (kind == "change")
    done = savimae("saliency", source, maps, "--saliency", kind)
    assert "0 videos" in done.stdout
    assert "4 were there already" in done.stdout
    # Maps and frames are not mixed in one folder of arrays.
    done = savimae("patches", maps, one, "--saliency", kind)
    assert done.returncode == 2
    assert "source is 'frames' there and 'maps' here" in done.stderr


def test_kinds_of_saliency_do_not_mix(source, tmp_path):
    words = ("preprocess", source, tmp_path / "out")
    assert savimae(*words, "--saliency", "change", "--limit", "1").returncode == 0
    for more, message in (
        ((), "saliency is 'change' there and None here"),
        (
            ("--saliency", "change", "--threshold", "0.4"),
            "--threshold is for --saliency frame-mean",
        ),
        (
            ("--saliency", "change", "--dtype", "float32"),
            "--dtype float32 is for --saliency frame-",
        ),
    ):
        done = savimae(*words, *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


def test_maps_of_another_model_are_resized_as_defined(tmp_path):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 256, (3, 61, 97), np.uint8)
    write_frames(tmp_path / "maps/Class/video", maps, ".png")
    out = tmp_path / "out"
    assert savimae("patches", tmp_path / "maps", out, "--threshold", "0.9").returncode == 0
    resized = [
        np.asarray(Image.fromarray(m).resize((224, 224), Image.Resampling.BILINEAR)) for m in maps
    ]
    salient = np.stack(resized) / 255 >= 0.9
    expected = salient.reshape(3, 14, 16, 14, 16).any((2, 4))
    np.testing.assert_array_equal(np.load(out / "Class/video.npy"), expected)
    done = savimae("patches", encode(tmp_path / "x.avi", moving_frames()), out)
    assert done.returncode == 2
    assert "saliency maps are folders of gray PNGs" in done.stderr


def test_golden_maps_through_the_command(golden, tmp_path):
    out = tmp_path / "maps"
    assert savimae("saliency", golden / "two_step/frames", out).returncode == 0
    folder = "SoccerJuggling/v_SoccerJuggling_g23_c01"
    published = sorted((golden / "two_step/saliency" / folder).iterdir())
    assert len(published) == 3
    for path in published:
        ours = Image.open(out / folder / path.name)
        assert ours.mode == "L"
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(Image.open(path)))


def test_outputs_inside_the_source_are_refused(source):
    done = savimae("preprocess", source, source / "saliency")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "lies inside" in done.stderr
    assert not (source / "saliency").exists()
