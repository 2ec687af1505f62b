"""A step runs through few files, and its trace seldom crosses a file border.

``python -m tests.support.step_trace`` prints the same, call by call.
"""

from tests.support.step_trace import trace_steps

MOST_FILES = 15
MOST_CROSSING_CALLS = 35


def test_ordinary_step_runs_through_few_files():
    trace = trace_steps()["ordinary step"]
    assert len(trace.files) <= MOST_FILES, sorted(trace.files)
    assert trace.crossing_calls <= MOST_CROSSING_CALLS, trace.crossings
