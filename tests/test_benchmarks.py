"""The benchmarks run, and what they compare computes the same; no time is looked at."""
import os
import subprocess
import sys


def test_our_step_and_the_plain_one_agree_in_loss_and_gradients():
    """Of ImageNet's first ten names, with "." and [EOT], five have 3 tokens, three 4 and two 5; 5 are shared."""
    done = subprocess.run([sys.executable, "benchmarks/step.py", "--quick", "--classes", "10", "--device", "cpu"],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(" ")]
    _, ours, plain, _, comparison = rows
    assert ours[2:4] == ["ours", str(5 + 5 * 3 + 5 * 5)] and plain[2:4] == ["plain", str(77 * 10)]
    loss, loss_differs, gradients_differ = map(float, comparison[6:9])
    assert loss > 0 and loss_differs <= 1e-5 and gradients_differ <= 1e-4


def test_an_evaluation_is_measured_beside_the_bare_image_tower(monkeypatch, capsys):
    monkeypatch.syspath_prepend("benchmarks")
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--quick", "--device", "cpu"])
    import evaluation

    evaluation.main()
    assert ["8", "30", "fp32"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
