from training import report


def test_builds_and_prints_the_path(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 9.0}\n{"step": 2, "train/loss": 8.0}\n')
    assert report.main([str(run)]) == 0
    path = capsys.readouterr().out.strip()
    assert path == str(run / "report.html") and (run / "report.html").stat().st_size > 10_000
    assert {"loss.png", "loss_recent.png", "loss_final.png"} <= {file.name for file in (run / "plots").iterdir()}


def test_a_bad_path_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert report.main([str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "report.html").exists()
