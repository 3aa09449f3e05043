"""The comparison of methods, small: every command is really run, in this process."""

from recap_ray import cli
from recap_ray.demo import comparison
from recap_ray.demo.comparison import Methods, compare


def test_a_method_is_trained_and_compared_with_and_without_a_map(ray_running, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "TRAINING", ("--epochs", "1", "--learning-rate", "1e-3"))
    monkeypatch.setattr(comparison, "STYLES", ("filled",))
    world = Methods.render(tmp_path / "world", fit_images=60, index_captions=20, held_out=12, seed=3)
    commands = []

    def run(arguments):
        commands.append(arguments[0])
        assert cli.run([*map(str, arguments)]) == 0

    compare(tmp_path, world, ["clipcap"], run)
    assert commands == ["fit-alignment", "train-decoder"] + ["caption", "evaluate"] * 2
    told = capsys.readouterr().out
    rows = [line for line in told.splitlines() if line.startswith("clipcap; ")]
    assert [row.split("  ")[0] for row in rows] == ["clipcap; filled; no map", "clipcap; filled; map"]
    assert all("1,593,600" in row or "1,610,240" in row for row in rows)  # with the map's d * (d + 2) numbers
    assert "12 held-out scenes" in told
