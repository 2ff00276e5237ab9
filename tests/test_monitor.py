import threading

from training import monitor


def test_once_prints_a_screen(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    assert monitor.main([str(tmp_path), "--once"]) == 0
    assert "nothing logged yet" in capsys.readouterr().out


def test_it_ends_with_the_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 9.0}\n')
    timer = threading.Timer(0.3, lambda: (tmp_path / "summary.json").write_text('{"status": "finished"}'))
    timer.start()
    assert monitor.main([str(tmp_path), "--every", "0.1"]) == 0
    timer.join()


def test_a_bad_path_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert monitor.main([str(tmp_path / "nothing"), "--once"]) == 2
    assert monitor.main([str(tmp_path / "nothing")]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["error", "error"]
