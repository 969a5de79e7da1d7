"""The benchmark of loading runs and fills its tables."""
import importlib.util


def test_dry_run_of_the_loading_benchmark(capsys):
    spec = importlib.util.spec_from_file_location("loading_benchmark", "benchmarks/loading.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert "cores" in lines[0] and "Pillow" in lines[0] and lines[1].startswith("8 JPEGs of 500 x 375")
    rows = [line.split() for line in lines if line.split()[1:3] in (["cached", "bytes"], ["read", "float"])]
    assert [(row[0], row[1]) for row in rows] == [("0", "read"), ("0", "cached"), ("1", "read"), ("1", "cached")]
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
