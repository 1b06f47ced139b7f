#!/usr/bin/python3
"""The judge of a recovered copy must fail for the right reason: dev/load/report on made-up logs."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

REPORT = os.path.join(os.path.dirname(__file__), "..", "load", "report")
LOG = "S 1 100\nA 1 110\nS 2 200\nA 2 210\nS 3 300\nR 350 lost\nS 4 400\nA 4 410\nS 5 500\nA 5 510\n"


def run(log, *arguments, rows=None):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "log")
        with open(path, "w") as file:
            file.write(log)
        command = [sys.executable, REPORT, arguments[0], path]
        if rows is not None:
            with open(os.path.join(folder, "rows"), "w") as file:
                file.write("".join(f"{n}\n" for n in rows))
            command.append(os.path.join(folder, "rows"))
        return subprocess.run([*command, *arguments[1:]], capture_output=True, text=True, check=False)


def compare(rows, requested=405, answered=450, log=LOG):
    return run(log, "compare", "--requested", str(requested), "--answered", str(answered), rows=rows)


class Compare(unittest.TestCase):
    def test_a_copy_between_request_and_answer_passes(self):
        for rows in ([1, 2], [1, 2, 3], [1, 2, 3, 4], [2, 1, 4]):
            self.assertEqual(compare(rows).returncode, 0, rows)

    def test_a_row_acknowledged_before_the_request_must_be_there(self):
        result = compare([1, 4])
        self.assertEqual(result.returncode, 1)
        self.assertIn('"lost": [2]', result.stderr)

    def test_a_row_sent_after_the_answer_must_not_be_there(self):
        result = compare([1, 2, 5])
        self.assertEqual(result.returncode, 1)
        self.assertIn('"fromTheFuture": [5]', result.stderr)

    def test_a_row_nobody_sent_is_wrong(self):
        self.assertIn('"neverSent": [9]', compare([1, 2, 9]).stderr)

    def test_a_row_twice_is_wrong(self):
        self.assertIn('"twice": [2]', compare([1, 2, 2]).stderr)

    def test_a_comparison_of_nothing_fails(self):
        self.assertIn("nothing was compared", compare([], requested=50).stderr)


class Gaps(unittest.TestCase):
    def test_the_ends_of_the_span_count(self):
        result = json.loads(run(LOG, "gaps", "--from", "0", "--to", "2000510").stdout)
        self.assertEqual((result["rows"], result["longestGapSeconds"]), (4, 2.0))

    def test_a_half_written_last_line_is_ignored(self):
        self.assertEqual(json.loads(run(LOG + "A 6 6", "gaps").stdout)["rows"], 4)


if __name__ == "__main__":
    unittest.main()
