import json
import os
import pty
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from processes import everest
from safetensors.torch import save_file
from small_runs import called, refused, run
from typer.main import get_command
from typer.testing import CliRunner

from everest_cli.main import app, as_user_error

COMMANDS = [  # in the order of help
    *("train", "pretrain", "finetune", "eval", "predict", "timeline", "visualize-mask", "profile"),
    *("demo", "recipes", "probe", "sweep", "train-tokenizer", "runs", "plot", "select-frames", "doctor"),
    *("budget", "extract", "export", "convert", "weights", "prepare"),
]
HEAVY = {"torch", "numpy", "yaml", "rich", "av"}
HELP = f"""
import io, json, sys
from contextlib import redirect_stdout
from everest_cli.main import main
texts, codes = {{}}, set()
for command in {["", *COMMANDS]}:
    sys.argv = ["everest", *command.split(), "--help"]
    with redirect_stdout(io.StringIO()) as shown:
        try:
            codes.add(main())
        except SystemExit as ended:
            codes.add(ended.code)
    texts[command] = shown.getvalue()
print(json.dumps([texts, sorted({HEAVY} & set(sys.modules)), sorted(codes, key=str)]))
"""


def test_help_imports_no_heavy_module_and_fits_the_page():
    words = [sys.executable, "-c", HELP]
    ended = subprocess.run(words, capture_output=True, text=True, env={"COLUMNS": "100"}, check=True)
    texts, heavy, codes = json.loads(ended.stdout)
    assert (ended.stderr, heavy, codes) == ("", [], [0])
    for command, text in texts.items():
        assert "Example: everest" in text or command in ("recipes", "prepare", "weights")
        assert max(map(len, text.splitlines())) <= 100, command


def help_in_80_columns(*words: str) -> list[str]:
    return CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}).stdout.splitlines()


def test_help_fits_80_columns_and_lists_every_command_under_a_subject():
    lines = help_in_80_columns()
    subjects = ["Start here:", "Train:", "Look:", "Use:", "Data:"]
    assert [line for line in lines if line in subjects] == subjects
    listed = lines[lines.index("Start here:") :]
    assert [line.split()[0] for line in listed if line.startswith("  ")] == COMMANDS
    assert not [line for line in listed + help_in_80_columns("prepare")[1:] if line.endswith("...")]  # cut
    commands = get_command(app).commands
    children = [(group, name) for group in ("prepare", "recipes") for name in commands[group].commands]
    for words in [(), *((name,) for name in commands), *children]:
        lines = help_in_80_columns(*words)
        assert max(map(len, lines)) <= 80, words
        assert not re.search("<int|<float|<str|<path|range>", "\n".join(lines)), words


@pytest.mark.parametrize(
    ("typed", "completions"),
    [
        ("everest pre", ["pretrain", "predict", "prepare"]),
        ("everest prepare s", ["split", "shard"]),
        ("everest finetune --ini", ["--init"]),
        ("everest pretrain --recipe ucf101-r", ["ucf101-released", "ucf101-running-cell"]),
    ],
)
def test_shells_complete_commands_options_and_recipes(typed: str, completions: list[str]):
    shell = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    shell |= {**os.environ, "_EVEREST_COMPLETE": "complete_bash"}
    program = "import sys; sys.argv = ['everest']; from everest_cli.main import main; main()"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=shell)
    assert sorted(shown.stdout.split()) == sorted(completions), shown.stderr


def test_weights_without_a_recipe_and_of_nobody_have_their_messages(recipe, autoencoder_run, tmp_path):
    autoencoder = shutil.copy(autoencoder_run / "model.safetensors", tmp_path)
    assert "recipe.yaml next to it" in refused("eval", "-c", autoencoder, code=6)
    save_file({}, foreign := tmp_path / "foreign.safetensors")
    command = ["finetune", "--recipe", recipe, "-o", tmp_path / "run", "--init", foreign]
    assert "not written by everest" in refused(*command, code=6)


def test_an_output_with_other_files_is_not_changed(recipe: Path, tmp_path: Path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    command = ["pretrain", "--recipe", recipe, "-o", folder]
    assert "is not a run folder" in refused(*command, code=2)
    called(*command, "--overwrite")
    assert (folder / "thesis.txt").read_text() == "precious"
    assert "holds a run" in refused(*command, "--resume", "never", code=2)
    assert "a file is in the way" in refused(*command[:-1], folder / "thesis.txt", code=2)
    assert "holds no demo" in refused("demo", "-o", folder, code=2)
    assert "cannot write /proc/everest/run" in refused(*command[:-1], "/proc/everest/run", code=5)


def test_usage_errors_have_code_2():
    missing = refused("pretrain", code=2)
    assert missing == "error: missing option '--recipe' / '-r' (see `root pretrain --help`)\n"
    for words in ("pretrian", "--gone", "prepare gone", "plot", "export c -o o", "predict a --top x"):
        message = refused(words, code=2)
        assert message.startswith("error: ")
        assert message.count("\n") == 1
    for words in ("select-frames a --size", "predict a -c c --batch", "prepare encode a -o b --gop"):
        assert "must be at most" in refused(words, 10**18, code=2)
    assert "Traceback" in called("--debug", "pretrain", "--recipe", "nothing", code=2).stderr


def test_a_resolved_recipe_resolves_to_itself(recipe: Path, tmp_path: Path):
    shown = run("recipes show --resolved", recipe)
    (tmp_path / "again.yaml").write_text(shown)
    assert run("recipes show --resolved", tmp_path / "again.yaml") == shown


def test_too_little_memory_and_a_compiler_error_are_errors_of_the_environment():
    def refuse(graph: object, inputs: object) -> None:
        raise OSError("cache/a.so: file too short")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(lambda x: x + 1, backend=refuse)(torch.ones(1))
    reason = "cannot compile the model (backend='refuse' raised: OSError: cache/a.so: file too short)"
    for error, *parts in (
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "train.micro_batch"),
        (MemoryError(), "train.micro_batch"),
        (RuntimeError("CUDA error: out of memory"), "train.micro_batch"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "train.micro_batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "train.micro_batch"),
        (caught.value, reason, "train.compile=false"),
    ):
        problem = as_user_error(error)
        assert problem.exit_code == 5
        assert all(part in str(problem) for part in parts)
    for bug in (RuntimeError("a bug"), OverflowError("a bug")):
        assert as_user_error(bug) is None


@pytest.mark.slow
def test_a_damaged_cache_of_compiled_models_is_one_line(recipe, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    options = ["--recipe", recipe, "-o", tmp_path / "run", "--set", "train.compile=true", "--overwrite"]
    everest("pretrain", *options, timeout=1200)
    for path in [*cache.rglob("*.so"), *(cache / "fxgraph").rglob("*")]:
        if path.is_file():
            path.write_text("x")
    message = everest("pretrain", *options, code=5, timeout=1200).stderr
    assert "error: train.compile: torch cannot compile the model (" in message
    assert "file too short" in message
    assert 'File "<frozen' not in message


def test_both_spellings_of_the_output_are_accepted_and_one_is_shown(tmp_path: Path):
    for option in ("--out", "--output"):
        for command in (["plot", tmp_path], ["runs", tmp_path], ["pretrain", "--recipe", "demo"]):
            message = CliRunner().invoke(app, [*map(str, command), option, str(tmp_path / "x.txt")]).stderr
            assert ("no such option" in message) == (command[0] == "runs"), message
    for command in ("extract", "convert", "export", "visualize-mask", "plot", "pretrain", "demo"):
        shown = run(command, "--help")
        assert "--output" in shown
        assert "--out " not in shown


LONG = {  # exit codes of commands with a long value in place of X
    "recipes show X": 2,
    "recipes show X.yaml": 2,
    f"recipes show {'x/' * 3000}a.yaml": 2,
    "predict a.mp4 -c x --top X": 2,
    "predict a.mp4 -c X": 4,
    "predict X -c x": 6,
    "runs X": 2,
    "plot X": 2,
    "profile --backbone X": 2,
    "pretrain --recipe small --gpus X": 2,
    "pretrain --recipe small --data X": 4,
    "pretrain --recipe small --set data.train=X --data .": 4,
    "convert X --inspect": 6,
    "convert hf:X --inspect": 6,
    "convert x.pth -o X": 2,
    "eval -c X": 6,
}


@pytest.mark.parametrize("command", LONG, ids=lambda text: text[:40])
def test_a_message_does_not_repeat_a_long_value(command: str):
    result = CliRunner().invoke(app, command.replace("X", "x" * 50_000).split())
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code in (LONG[command], 5)  # 5: the operating system refuses the name
    assert len(result.stderr) < 1500


PROGRESS = """
from everest_cli.output import Display
event = {"event": "step", "steps": 200, "epochs": 40, "epoch": 0, "loss": 1.1, "lr": 1e-4}
event |= {"clips_per_second": 14.1, "data_wait": 0.03, "memory_bytes": 2**30}
with Display() as display:
    for step in (1, 2, 3):
        display.emit(event | {"step": step})
"""


def test_the_bar_and_the_remaining_time_fit_into_80_columns():
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ |= {"COLUMNS": "80", "TERM": "xterm"}
        os.execv(sys.executable, [sys.executable, "-c", PROGRESS])
    shown = b""
    with suppress(OSError):  # the end of a closed terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.waitpid(pid, 0)
    lines = re.split(r"[\r\n]+", re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode())
    last = next(line for line in reversed(lines) if "step 3/200" in line)
    assert re.match(r"━+ ETA [-0-9:]+ epoch 1/40 step 3/200 loss 1\.1000 ", last), last
    assert len(last) <= 80


AT_THE_END = """
import atexit, threading, time
def write(name):
    time.sleep(0.2)
    open(name, "w").close()
atexit.register(write, "at-exit")
threading.Thread(target=lambda: (threading.main_thread().join(), write("thread"))).start()
"""


def test_nothing_is_lost_at_the_end_of_a_command(tmp_path):
    (tmp_path / "mine.py").write_text(AT_THE_END)
    command = [sys.executable, "-m", "everest_cli", "--import", "mine", "recipes", "list", "--json"]
    own = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)
    assert (tmp_path / "at-exit").is_file()
    assert (tmp_path / "thread").is_file()


def test_a_full_output_fails():
    command = [sys.executable, "-m", "everest_cli", "recipes", "list", "--json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode != 0
    assert "No space left on device" in ended.stderr


def test_a_working_directory_that_is_not_utf_8_is_one_line(tmp_path: Path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    ended = subprocess.run(
        [sys.executable, "-m", "everest_cli", "recipes", "list"], capture_output=True, text=True, cwd=folder
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the working directory ")
    assert line.endswith(" is not UTF-8; rename it")
