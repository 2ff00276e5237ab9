"""Launches that cannot be: one line with the true reason and code 2, before torch is loaded or data prepared."""

from pathlib import Path

import pytest

from training import train

DEEP = "model: {config: " + "{a: " * 500 + "1" + "}" * 500 + "}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
# What stands in r.yaml (bytes as they are), and what the line must hold.
RECIPES: list[tuple[str | bytes, str]] = [
    ("training: [1]\n", "r.yaml:1: training = [1]: must be a section with keys"),
    ("perf: true\n", "r.yaml:1: perf = true: must be a section with keys"),
    ("data: {sources: {path: x}}\n", "must be a list"),
    ("data: {sources: }\n", "data.sources = null: must be a list"),
    ("training: {max_steps: ~}\n", "training.max_steps = null: must be an integer"),
    ("training:\n\tmax_steps: 3\n", "r.yaml:2: not valid YAML: found character"),
    ("training: {max_steps: 1}\ntraining: {max_steps: 2}\n", "r.yaml:2: duplicate key training"),
    ("training: {learning_rate: .nan}\n", "must be a finite number"),
    ("training: {max_steps: 010}\n", "training.max_steps = '010': must be an integer"),
    ("training: {run_name: !!binary aGk=}\n", "is binary"),
    ("- a\n", "expected `key: value` lines"),
    ("hello\n", "expected `key: value` lines"),
    ("---\na: 1\n---\nb: 2\n", "another document"),
    (DEEP, "nested too deeply"),
    (BOMB, "contains more than 20,000 values"),
    (b"\x00\x01\xff", "is not UTF-8 text"),
    ("model: {path: é}\n".encode("latin-1"), "is not UTF-8 text"),
    ("training: {max_steps: 3}\n".encode("utf-16"), "is not UTF-8 text"),
    ('{"zero_optimization": {"stage": 2}}', "this is a DeepSpeed JSON, not a recipe: pass it with --deepspeed"),
    ("extends: nowhere\n", "extends: recipe 'nowhere' is neither a file nor one of"),
]
JSONS: list[tuple[str | bytes, str]] = [
    ('{"zero_optimization": {"stage": 1, "overlap_comm": "true"}}', "overlap_comm"),
    ('{"gradient_clipping": "1.0"}', "must be a number"),
    ('{"zero_optimization": {"stage": "2"}}', "must be one of 0, 1, 2, 3"),
    ('{"zero_optimization": true}', "must be an object with keys"),
    ("", "ds.json:1: not valid JSON"),
    ("[]", "expected `key: value` lines"),
    ("null", "expected `key: value` lines"),
    ('{"bf16": {"enabled": true},}', "not valid JSON"),
    ('{"gradient_clipping": 1.0, "gradient_clipping": 2.0}', "duplicate key gradient_clipping"),
    (b"\xff\xfe", "cannot be read"),
]
ARGUMENTS: list[tuple[list[str], str]] = [
    (["--config", "/tmp"], "recipe '/tmp' is neither a file nor one of"),
    (["--config", ""], "recipe '' is neither a file nor one of"),
    (["--config"], "--config needs a value"),
    (["--"], "unexpected '--'"),
    ([""], "unexpected ''"),
    (["data"], "unexpected 'data'"),
    (["--=3"], "unknown flag --"),
    (["training.max_steps.x=3"], "must be an integer"),
    (["--run_name", "x\udcff"], "is not valid UTF-8"),
    (["--output_dir", ".."], "would be moved aside with it"),
    (["--output_dir", "/"], "would be moved aside with it"),
    (["--output_dir", "y" * 300], "File name too long"),
    (["--output_dir", "r.yaml"], "is a file: name a directory"),
    (["--output_dir", "/proc/run"], "cannot be written"),
    (["--deepspeed", "/tmp"], "is neither a file nor one of"),
    (["--lora_r", "8", "--model", "org/m"], "adapter.method is none: set adapter.method: lora"),
]
ENVIRONMENTS: list[tuple[dict[str, str], str]] = [
    ({"RANK": "x"}, "RANK = 'x'"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE = 'two'"),
    ({"WORLD_SIZE": "2"}, "RANK is not set"),
    ({"MASTER_PORT": "abc"}, "MASTER_PORT = 'abc'"),
    ({"OMP_NUM_THREADS": "abc"}, "OMP_NUM_THREADS = 'abc'"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "name the JSON with --deepspeed"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "accelerate's --mixed_precision"),
]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """`refused(argv)`: the one line of a launch in an empty directory; torch and the data are out of its reach."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(train, "configure_logging", lambda world: pytest.fail("it went on to what needs torch"))

    def launch(argv: list[str]) -> str:
        before = set(tmp_path.iterdir())
        assert train.main(argv) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1, line
        assert set(tmp_path.iterdir()) == before
        return line

    return launch


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(("content", "message"), RECIPES)
def test_recipes(refused, content, message):
    write("r.yaml", content)
    assert message in refused(["--config", "r.yaml"])


@pytest.mark.parametrize(("content", "message"), JSONS)
def test_deepspeed_jsons(refused, content, message):
    write("ds.json", content)
    assert message in refused(["--deepspeed", "ds.json"])


@pytest.mark.parametrize(("argv", "message"), ARGUMENTS)
def test_command_lines(refused, argv, message):
    write("r.yaml", "")
    assert message in refused(argv)


@pytest.mark.parametrize(("environ", "message"), ENVIRONMENTS)
def test_environments(refused, monkeypatch, environ, message):
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    assert message in refused([])


def test_a_byte_order_mark_and_line_ends_of_windows_are_nothing(refused):
    write("r.yaml", b"\xef\xbb\xbftraining:\r\n  max_steps: many\r\n")
    assert "r.yaml:2: training.max_steps = 'many': must be an integer" in refused(["--config", "r.yaml"])


def test_a_directory_that_is_no_run_is_not_moved_aside(refused):
    Path("photos").mkdir()
    write("photos/a.png", "")
    assert "photos holds what is no run (a.png)" in refused(["--output_dir", "photos"])
    assert Path("photos/a.png").exists()
