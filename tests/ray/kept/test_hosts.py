"""The kept processes leave nothing of one test to the next."""


def test_variables_of_a_call_are_gone_with_it(hosts):
    def value(**env):
        asked = {"function": "os:getenv", "arguments": {"key": "KEPT_TEST"}}
        return [host.call("ask", asked, **env) for host in (hosts.ray, hosts.runner)]

    assert value(KEPT_TEST="here") == ["here", "here"]
    assert value() == [None, None]
