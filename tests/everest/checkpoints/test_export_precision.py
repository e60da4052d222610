import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from processes import start, wait_until
from small_runs import called, json_of, onnx_session, refused, run
from timed_videos import write_frames
from torch import Tensor

import everest
from everest.checkpoints import quantization
from everest.checkpoints.graph import KEPT_IDS
from everest.checkpoints.quantization import find_upstream_nodes, quantize

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

EXAMPLE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "classify.py"


@pytest.fixture(scope="module")
def int8(classifier_run: Path, clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of an export with integers."""
    path = tmp_path_factory.mktemp("int8") / "int8.onnx"
    options = ["--to", "onnx", "--precision", "int8", "--calibrate", clip_files / "train.csv"]
    return json_of("export", classifier_run, *options, "-o", path)


def selecting_part(file: Path) -> tuple[list[tuple[object, ...]], dict[str, bytes]]:
    """The nodes that decide which tokens are kept, and the values of the constants that they use."""
    model = onnx.load(file)
    nodes = sorted(find_upstream_nodes(model, KEPT_IDS), key=lambda node: node.output[0])
    texts = [
        (node.op_type, *node.input, *node.output, *(value.SerializeToString() for value in node.attribute))
        for node in nodes
    ]
    used = {name for node in nodes for name in node.input}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return texts, {name: value.tobytes() for name, value in stored.items() if name in used}


def of_real_frames(file: Path, run_folder: Path, clip_files: Path) -> tuple[list[Tensor], Tensor, Tensor]:
    """The outputs of a file for four videos, and everest's logits and kept tokens."""
    model = everest.load_model(run_folder)
    clips = torch.stack([everest.read_clip(clip_files / f"clip{i}.mp4", like=model) for i in range(4)])
    found = onnx_session(file).run(None, {"frames": everest.normalize(clips).numpy()})
    with torch.no_grad():
        return [torch.from_numpy(part) for part in found], model(clips), model.encode_kept(clips)[0]


def test_int8_selects_tokens_by_the_nodes_of_the_float32_file(int8, onnx_file, classifier_run, clip_files):
    file = Path(int8["written"][0])
    nodes, constants = selecting_part(file)
    assert (nodes, constants) == selecting_part(onnx_file)
    assert {"TopK", "MatMul"} <= {node[0] for node in nodes}
    (logits, kept), expected, ids = of_real_frames(file, classifier_run, clip_files)
    assert torch.equal(kept, ids)
    difference = float((logits - expected).abs().max())
    assert 0 < difference <= int8["difference"] * 1.01  # it was calibrated, and compared, on these videos
    assert int8["relative_difference"] < 0.1
    changed = int((logits.argmax(dim=1) != expected.argmax(dim=1)).sum())
    assert (int8["num_changed"], int8["num_compared"]) == (changed, len(logits))
    change = float((logits.softmax(dim=1) - expected.softmax(dim=1)).abs().max())
    assert int8["probability_change"] == pytest.approx(change, rel=0.01)
    assert any(f"{changed} get another class, a probability changes by at most" in x for x in int8["notes"])
    assert any("test both files" in note or "take fp32" in note for note in int8["notes"])
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("QuantizeLinear") == 2 * 4  # the inputs of the four products of each of two blocks
    assert file.stat().st_size < onnx_file.stat().st_size


def test_files_have_the_oldest_format_that_gives_the_same_numbers(onnx_file: Path, int8, tmp_path: Path):
    for file in (onnx_file, Path(int8["written"][0])):
        model = onnx.load(file)
        assert (model.ir_version, model.opset_import[0].version) == (9, 20)  # of onnxruntime 1.17
        frames = torch.randn(3, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
        outputs = onnx_session(file).run(None, {"frames": frames})
        model.ir_version = 10  # as torch writes it
        onnx.save(model, tmp_path / "newer.onnx")
        newer = onnx_session(tmp_path / "newer.onnx").run(None, {"frames": frames})
        assert all(map(np.array_equal, outputs, newer))


def test_int8_is_compared_on_new_clips_and_shows_progress(classifier_run, clip_files, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, "MAX_CALIBRATION", 2)
    options = ["--to", "onnx", "--precision", "int8", "--calibrate", clip_files / "train.csv"]
    shown = called("export", classifier_run, *options, "-o", tmp_path / "int8.onnx").stderr
    missing = [*options[:-1], tmp_path / "nope.csv", "-o", tmp_path / "x.onnx"]
    assert "--calibrate " in (error := refused("export", classifier_run, *missing, code=4))
    assert "nope.csv: no such list or folder" in error
    assert re.search(r"^note: int8: of 4 clips, \d get another class, a probability changes by", shown, re.M)
    assert "calibrating int8 on 2 clips" in shown
    assert shown.count("video 4/4") == 1


def test_equal_calibration_clips_are_refused(classifier_run: Path, clip_files: Path, tmp_path: Path):
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip_files / "clip0.mp4", tmp_path / name)
    options = ["--to", "onnx", "--precision", "int8", "--calibrate", tmp_path, "-o", tmp_path / "int8.onnx"]
    problem = f"{tmp_path}: all calibration clips are equal; name typical videos of all classes"
    assert problem in refused("export", classifier_run, *options, code=4)


def test_a_product_with_an_outlier_in_its_input_stays_in_float32(tmp_path: Path):
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    generator = torch.Generator().manual_seed(0)
    shapes = {"first": (1000, 8), "second": (8, 3)}
    weights = {key: torch.randn(shape, generator=generator).numpy() for key, shape in shapes.items()}
    names = ["frames", "hidden", "logits"]
    nodes = [
        helper.make_node("MatMul", [names[i], key], [names[i + 1]], name=key) for i, key in enumerate(weights)
    ]
    ends = (
        helper.make_tensor_value_info(name, floats, ["b", width])
        for name, width in (("frames", 1000), ("logits", 3))
    )
    graph = helper.make_graph(
        nodes,
        "two products",
        *([end] for end in ends),
        [onnx.numpy_helper.from_array(x, key) for key, x in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    clips = torch.randn(8, 1, 1000, generator=generator)
    for outlier, kept, quantized in ((0.0, 0, ["frames", "hidden"]), (500.0, 1, ["hidden"])):
        clips[3, 0, 7] = outlier
        onnx.save(model, tmp_path / "f.onnx")
        assert quantize(tmp_path / "f.onnx", list(clips)) == (2 - kept, kept)
        written = onnx.load(tmp_path / "f.onnx").graph.node
        assert [node.input[0] for node in written if node.op_type == "QuantizeLinear"] == quantized


def test_eval_of_a_float32_file_equals_that_of_its_checkpoint(onnx_file, classifier_run, tmp_path):
    recipe = ["--recipe", classifier_run / "recipe.yaml", "-q"]
    rows = [tmp_path / "file.csv", tmp_path / "checkpoint.csv"]
    of_file = json_of("eval --checkpoint", onnx_file, *recipe, "--predictions", rows[0])
    expected = json_of("eval --checkpoint", classifier_run, *recipe, "--predictions", rows[1])
    same = ("top1", "clip_top1", "per_class", "videos", "views", "recipe")
    assert {key: of_file[key] for key in same} == {key: expected[key] for key in same}
    assert of_file["checkpoint"] == str(onnx_file)
    assert [len(path.read_text().splitlines()) for path in rows] == [5, 5]


@pytest.mark.slow
def test_eval_of_a_file_with_classes_tags_and_numbers_equals_that_of_its_checkpoint(mixed_run, tmp_path):
    file = tmp_path / "clips.onnx"
    run("export --to onnx", mixed_run, "-o", file)
    recipe = ["--recipe", mixed_run / "recipe.yaml", "-q"]
    of_file, expected = (json_of("eval --checkpoint", each, *recipe) for each in (file, mixed_run))
    for head, metric in (("verb", "top1"), ("tags", "map"), ("score", "mae")):
        found, value = (document["heads"][head][metric] for document in (of_file, expected))
        assert found == pytest.approx(value, rel=1e-3, abs=1e-3)


def test_what_an_exported_file_cannot_do_is_refused(onnx_file: Path, classifier_run: Path, tmp_path: Path):
    command = ["eval", "--checkpoint", onnx_file, "--recipe", classifier_run / "recipe.yaml"]
    for option in ("--which=newest", "--set=train.precision=bf16", "--set=finetune.selection.keep_ratio=0.5"):
        message = refused(*command, option, code=2)
        assert option.split("=")[0] in message
        assert "is exported and runs on the CPU as it is" in message
    assert "--set data.frames=4" in refused(*command, "--set=data.frames=8", code=6)
    assert "an ONNX file, which this command cannot read" in refused(
        "extract x.mp4 -o f.npz -c", onnx_file, code=6
    )
    assert "name the recipe of its run by --recipe" in refused("eval --checkpoint", onnx_file, code=6)


def test_files_of_other_programs_are_refused(onnx_file: Path, classifier_run: Path, tmp_path: Path):
    recipe, other = ["--recipe", classifier_run / "recipe.yaml"], tmp_path / "other.onnx"
    model = onnx.load(onnx_file)
    texts = {prop.key: prop.value for prop in model.metadata_props}
    for change, message in (
        (None, "not an ONNX classifier exported by everest"),
        ({"kind": "encoder"}, "not an ONNX classifier exported by everest"),
        ({"settings": "{"}, "its metadata is damaged"),
        ({"classes": '["run"]'}, "its metadata is damaged (other classes"),
        ({"clip": texts["clip"].replace("dense", "loose")}, "or an unknown sampling); export it again"),
    ):
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {} if change is None else {**texts, **change})
        onnx.save(model, other)
        assert message in refused("eval --checkpoint", tmp_path / "other.onnx", *recipe, code=6)
    for content in (b"no graph", b""):
        other.write_bytes(content)
        assert "onnxruntime cannot read it" in refused("eval --checkpoint", other, *recipe, code=6)
    onnx.save(of_unknown_version(model), other)
    message = refused("eval --checkpoint", other, *recipe, code=6)
    assert "onnxruntime cannot read it (Unsupported model IR version: 99, max supported" in message
    value = onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "one output", [value], [value])
    model = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, other)
    assert "not an ONNX classifier exported by everest" in refused("eval -c", other, *recipe, code=6)


def test_latency_of_a_checkpoint_and_of_a_file(onnx_file: Path, classifier_run: Path, clip_files: Path):
    for checkpoint, data in ((onnx_file, ["--data", clip_files / "train.csv"]), (classifier_run, [])):
        document = json_of("profile --latency --gpus cpu --checkpoint", checkpoint, *data)
        latency = document["latency"]
        parts = [latency[f"{part}_ms"] for part in ("decode", "transform", "network")]
        assert min(parts) > 0
        assert max(parts) < latency["p50_ms"] <= latency["p95_ms"]
        assert (latency["videos"], latency["measured"]) == (4 if data else 1, 30)
        assert latency["threads"] == int(os.environ.get("OMP_NUM_THREADS", "1"))
        assert (document["windows"] is None) == (checkpoint == onnx_file)
    windows = ["--window", 1, "--step", 0.25, "--batch", 2]
    timed = json_of("profile --latency --gpus cpu -c", classifier_run, "--data", clip_files, *windows)[
        "windows"
    ]
    assert (timed["window"], timed["step"], timed["batch"]) == (1, 0.25, 2)
    assert timed["hours_per_hour"] > 0
    shown = called("profile --latency --gpus cpu -c", classifier_run).stdout
    assert re.search(r"timeline: 100 hours of video take [\d.e+-]+ hours \(windows of", shown)
    assert "--latency and --checkpoint: give both or neither" in refused("profile --latency", code=2)


def classified(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What docs/examples/classify.py printed."""
    return subprocess.run([sys.executable, EXAMPLE, *map(str, arguments)], capture_output=True, text=True)


def of_unknown_version(model: Any) -> Any:
    """The model in a format that no onnxruntime reads, as an old one does not read ours."""
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.ir_version = 99
    return newer


def of_unknown_operator(model: Any) -> Any:
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    next(node for node in newer.graph.node if node.op_type == "Gelu").op_type = "NewGelu"
    return newer


def of_unknown_opset(model: Any) -> Any:
    newer = onnx.ModelProto()
    newer.CopyFrom(model)
    newer.opset_import[0].version = 99
    return newer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (of_unknown_version, "Unsupported model IR version: 99, max supported IR version: "),
        (of_unknown_opset, "Opset 99 is under development"),
        (of_unknown_operator, "NewGelu"),
    ],
)
def test_the_example_passes_on_why_onnxruntime_refuses_a_file(
    onnx_file, clip_files, tmp_path, change, reason
):
    onnx.save(change(onnx.load(onnx_file)), tmp_path / "x.onnx")
    ended = classified(tmp_path / "x.onnx", clip_files / "clip2.mp4")
    assert ended.returncode == 1
    prefix = f"{tmp_path / 'x.onnx'}: onnxruntime {onnxruntime.__version__} cannot read it: "
    assert ended.stderr.startswith(prefix)
    assert reason in ended.stderr
    assert "logging::Logger" not in ended.stderr
    assert ended.stderr.endswith("need onnxruntime 1.17 or newer; copy a cut file again)\n")
    assert ended.stderr.count("\n") == 1


def test_the_example_answers_as_predict(onnx_file: Path, classifier_run: Path, clip_files: Path):
    video = clip_files / "clip2.mp4"
    found = json.loads(classified(onnx_file, video, "--json").stdout)["classes"]
    (row,) = json_of("predict --views 1x1 -q --checkpoint", classifier_run, video)
    expected = {each["label"]: each["probability"] for each in row["predictions"]}
    assert found == pytest.approx(expected, abs=2e-3)
    assert list(found) == list(expected)
    about = json.loads(onnx_session(onnx_file).get_modelmeta().custom_metadata_map["clip"])
    assert about["seconds"] == pytest.approx(2, abs=0.1)  # the length of the training videos
    lines = [json.loads(line) for line in classified(onnx_file, video, 0.5, "--json").stdout.splitlines()]
    assert [line["start"] for line in lines] == [0, 0.5, 1, 1.5]  # of 2 seconds
    assert all(list(line["classes"].keys() ^ expected.keys()) == [] for line in lines)
    assert all(0.99 < sum(line["classes"].values()) < 1.01 and line["network_ms"] > 0 for line in lines)
    shown = classified(onnx_file, video, 0.5)
    name, fraction = next(iter(lines[0]["classes"].items()))
    assert shown.stdout.splitlines()[0].split() == [
        "0.0",
        "to",
        "0.5",
        "s",
        name,
        f"{100 * fraction:.1f}",
        "%",
    ]
    assert re.search(
        "^windows: 4; median CPU time: .* ms to decode and resize, .* ms in the network$", shown.stderr
    )


def test_the_example_goes_on_after_a_damaged_packet(onnx_file: Path, clip_files: Path, tmp_path: Path):
    video, damaged = clip_files / "clip2.mp4", tmp_path / "damaged.mp4"
    with av.open(video) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(video.read_bytes())
    _, second_key, _ = (number for number, packet in enumerate(packets) if packet.is_keyframe)
    packet = packets[second_key + 1]
    content[packet.pos + 4 : packet.pos + packet.size] = b"\xff" * (packet.size - 4)
    damaged.write_bytes(content)
    ended, intact = classified(onnx_file, damaged, 0.5, "--json"), classified(onnx_file, video, 0.5, "--json")
    assert ended.returncode == 0
    assert "left out up to the next keyframe\n" in ended.stderr
    assert ended.stderr.startswith(f"{damaged}: damaged at 0.8")
    starts = [json.loads(line)["start"] for line in ended.stdout.splitlines()]
    assert (starts[0], starts[-1]) == (0, 1.5)
    assert len(starts) == 3 < len(intact.stdout.splitlines())


@pytest.fixture(scope="module")
def late_stream(clip_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transport stream whose first frame is shown at 1.375 s, as many muxers write it."""
    stream = tmp_path_factory.mktemp("late") / "late.ts"
    with av.open(clip_files / "clip2.mp4") as source, av.open(stream, "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                delay = round(1.375 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + delay, packet.dts + delay, copy
                target.mux(packet)
    with av.open(stream) as container:
        assert next(container.decode(video=0)).time == 1.375
    return stream


def test_the_example_counts_time_from_the_first_frame(onnx_file: Path, late_stream: Path):
    lines = [
        json.loads(line) for line in classified(onnx_file, late_stream, 0.5, "--json").stdout.splitlines()
    ]
    assert [line["start"] for line in lines] == [0, 0.5, 1, 1.5]
    assert [line["end"] for line in lines][:3] == [0.5, 1, 1.5]


def test_the_example_ends_when_a_stream_stalls(onnx_file: Path, late_stream: Path):
    content = late_stream.read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        for sent in (b"", content):  # no data at all, or none after a while
            address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            command = [sys.executable, EXAMPLE, onnx_file, address, "0.5", "--timeout", "1"]
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as process:
                connection, _ = server.accept()
                connection.sendall(sent)
                shown, message = process.communicate(timeout=120)
                connection.close()
            assert process.returncode == 1
            assert message.splitlines()[-1] == f"{address}: no data for 1 s; check the address and its sender"
            assert bool(shown) == bool(sent)


def watching(onnx_file: Path, source: Path, *options: object) -> subprocess.Popen[str]:
    """docs/examples/classify.py on a source that has not ended, with windows of 0.5 s."""
    command = [sys.executable, "-u", EXAMPLE, onnx_file, source, "0.5", "--json", "--timeout", "1", *options]
    # A shell may ignore Ctrl-C in what it runs in the background, and children inherit that.
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_until(lines: Any, text: str) -> str:
    return next(line for line in lines if text in line)


def test_the_example_opens_a_pipe_again_and_says_that_it_stalls(onnx_file, late_stream, tmp_path):
    pipe, content = tmp_path / "camera", late_stream.read_bytes()
    os.mkfifo(pipe)
    before = datetime.now().astimezone()
    with watching(onnx_file, pipe) as process:
        read_until(process.stderr, f"{pipe}: no data for 1 s; waiting")  # for a writer
        for _ in range(2):
            with pipe.open("wb", buffering=0) as writer:
                writer.write(content)
                read_until(process.stderr, f"{pipe}: no data for 1 s; waiting")
            read_until(process.stderr, f"{pipe}: the stream ended; opening it again")
            line = json.loads(process.stdout.readline())
            assert before < datetime.fromisoformat(line["end"]) < datetime.now().astimezone()
        process.send_signal(signal.SIGINT)
        assert "windows: " in process.stderr.read()
    assert process.returncode == 0
    with watching(onnx_file, pipe, "--once") as process:
        pipe.write_bytes(content)
        assert len(process.communicate()[0].splitlines()) >= 3
    assert process.returncode == 0
    with watching(onnx_file, pipe, "--once") as process:
        assert process.communicate()[1] == f"{pipe}: no data for 1 s\n"
    assert process.returncode == 1


def test_the_example_follows_a_file_that_grows_and_is_replaced(onnx_file, late_stream, tmp_path):
    file, content = tmp_path / "growing.ts", late_stream.read_bytes()
    half = len(content) // 2 // 188 * 188
    file.write_bytes(content[:half])
    with watching(onnx_file, file, "--follow") as process:
        read_until(process.stderr, f"{file}: no data for 1 s; waiting")
        with file.open("ab") as more:
            more.write(content[half:])
        read_until(process.stderr, f"{file}: no data for 1 s; waiting")
        file.unlink()
        read_until(process.stderr, f"{file}: the stream ended; opening it again")
        file.write_bytes(content)
        read_until(process.stderr, f"{file}: no data for 1 s; waiting")
        file.unlink()
        shown, message = process.communicate()
    assert len(shown.splitlines()) == 6  # three windows, twice
    assert process.returncode == 1  # it did not come back
    assert "No such file or directory" in message


def test_the_example_goes_on_where_a_clock_jumps_back(onnx_file, late_stream, tmp_path):
    joined, bare = tmp_path / "joined.ts", tmp_path / "bare.h264"
    joined.write_bytes(2 * late_stream.read_bytes())
    alone, twice = (classified(onnx_file, file, 0.5, "--json") for file in (late_stream, joined))
    assert twice.stderr.count("its clock jumped back") == 1
    parts = [[json.loads(line) for line in ended.stdout.splitlines()] for ended in (alone, twice)]
    whole = [row for row in parts[0] if row["end"] - row["start"] > 0.49]
    assert len(parts[1]) >= 2 * len(whole)
    assert all(row["start"] >= earlier["start"] for earlier, row in pairwise(parts[1]))
    with av.open(str(late_stream)) as source, av.open(str(bare), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert len(classified(onnx_file, bare, 0.5).stdout.splitlines()) >= 3


def test_the_example_says_what_a_pipe_needs(onnx_file: Path, tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 240, 320, 3), dtype=np.uint8)
    video = write_frames(tmp_path / "noise.mp4", noise, codec="libx264", rate=10)  # too large for a buffer
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    with watching(onnx_file, pipe, "--once") as process:
        with suppress(BrokenPipeError):
            pipe.write_bytes(video.read_bytes())
        _, message = process.communicate()
    assert process.returncode == 1
    assert message.endswith("a pipe needs a format without an index at its end, such as MPEG-TS\n")


def test_the_example_prints_faults_and_alarms(onnx_file: Path, clip_files: Path):
    video = clip_files / "clip2.mp4"
    whole = json.loads(classified(onnx_file, video, "--json").stdout)
    best, other, *_ = whole["classes"]
    assert whole["present"] == [best]
    assert "alarm" not in whole
    overlapping = [onnx_file, video, 1, "--step", 0.25, "--normal", other, "--hold", 2]
    rows = [json.loads(line) for line in classified(*overlapping, "--json").stdout.splitlines()]
    assert [row["start"] for row in rows[:5]] == [0, 0.25, 0.5, 0.75, 1]
    assert all(row["end"] - row["start"] == pytest.approx(1) for row in rows[:4])
    in_a_row = 0
    for row in rows:
        is_fault = 1 - row["classes"][other] >= 0.5
        in_a_row = in_a_row + 1 if is_fault else 0
        assert (row["present"] != [other]) == is_fault
        assert row["alarm"] == (in_a_row >= 2)
        assert row["begins"] == (in_a_row == 2)
    assert in_a_row >= 3
    shown = classified(*overlapping).stdout.splitlines()
    assert [line.endswith("  ALARM") for line in shown] == [row["begins"] for row in rows]
    assert ["  ALARM" in line for line in shown] == [row["alarm"] for row in rows]
    never = classified(*overlapping, "--threshold", 1).stdout.splitlines()
    assert [line.split()[4] for line in never] == len(never) * [other]
    ended = classified(onnx_file, video, "--normal", "nope")
    assert ended.returncode == 1
    assert ended.stderr.startswith("--normal nope: not a class of the model (")
    assert "--step: must be at most SECONDS" in classified(onnx_file, video, 1, "--step", 2).stderr


def test_the_example_refuses_what_is_no_video_in_a_line(onnx_file: Path, tmp_path: Path):
    (tmp_path / "text.mp4").write_text("no video")
    for source in (tmp_path / "text.mp4", tmp_path / "none.mp4"):
        ended = classified(onnx_file, source)
        assert ended.returncode == 1
        assert ended.stderr.startswith(f"{source}: ")
        assert len(ended.stderr.splitlines()) == 1
    assert classified(onnx_file).stderr.startswith("usage: ")
    shown = classified("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "MODEL.onnx SOURCE [SECONDS]" in shown.stdout


def test_the_example_ends_with_the_pipe_that_reads_it(onnx_file: Path, clip_files: Path):
    command = [sys.executable, EXAMPLE, onnx_file, clip_files / "clip2.mp4", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().endswith("%\n")
        process.stdout.close()
        assert "Error" not in process.stderr.read()
    assert process.returncode == 0


def test_an_export_writes_the_program_beside_the_file_and_keeps_the_users_own(classifier_run, tmp_path):
    program, command = tmp_path / "classify.py", ["export", classifier_run, "--to", "onnx", "-o"]
    shown = called(*command, tmp_path / "a.onnx").stderr
    assert program.read_text() == EXAMPLE.read_text()
    assert f"python {program} {tmp_path / 'a.onnx'} 0\n" in shown
    assert "--precision int8 --calibrate " in shown
    program.write_text("mine")
    called(*command, tmp_path / "b.onnx")
    assert program.read_text() == "mine"


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_stopped_export_leaves_nothing(how: signal.Signals, classifier_run: Path, tmp_path: Path):
    before = signal.signal(how, signal.SIG_DFL)  # the tests themselves may run under nohup
    process = start("export", classifier_run, "--to", "onnx", "-o", tmp_path / "a.onnx", group=False)
    signal.signal(how, before)
    wait_until(lambda: any(tmp_path.iterdir()), process)
    process.send_signal(how)
    assert process.wait(timeout=120) == 128 + how
    assert list(tmp_path.iterdir()) == []
