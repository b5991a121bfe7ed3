"""More of ../test_hosts.py: a runner that cannot be used any more."""


def test_a_runner_that_is_gone_is_replaced_and_one_that_never_answered_too(kept_hosts):
    gone = kept_hosts.get()
    gone.runner.end()
    silent = kept_hosts.get()
    assert (silent.ray, silent.address) == (gone.ray, gone.address)
    asked = {"function": "os:getenv", "arguments": {"key": "KEPT_TEST"}}
    silent.runner.tell("ask", asked)  # and nobody reads the answer
    fit = kept_hosts.get()
    assert fit.runner not in (gone.runner, silent.runner)
    assert fit.runner.call("ask", asked) is None
