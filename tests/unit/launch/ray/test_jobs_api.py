"""The client of the Ray Jobs API, against a server with prepared answers."""

import json
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address

import httpx
import pytest

from airflow_tune_restore.exceptions import InvalidInputError, RayClusterError
from airflow_tune_restore.launch.ray.cluster import Cluster, parse_cluster_address
from airflow_tune_restore.launch.ray.cluster_errors import translate_transport_error
from airflow_tune_restore.launch.ray.job_log import JobLog
from airflow_tune_restore.launch.ray.jobs_api import RayJob, RayJobs


class _Handler(BaseHTTPRequestHandler):
    def _answer(self):
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization")))
        status, body, headers = self.server.answers.get(
            (self.command, self.path), (404, b"no such page", {})
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.asked, httpd.answers = [], {}
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


@pytest.fixture
def jobs(server):
    address = f"http://127.0.0.1:{server.server_port}"
    return RayJobs(Cluster(address=address, token="t0ken"))


def answer(server, method, path, status, body, **headers):
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    server.answers[method, path] = status, given, headers


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("http://head:8265", "http://head:8265"),
        ("http://head:8265/", "http://head:8265"),
        ("head", "http://head:8265"),
        ("head:9000", "http://head:9000"),
        ("https://ray.example.com", "https://ray.example.com"),
        ("https://example.com/ray/", "https://example.com/ray"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_an_address_is_completed(given, address):
    assert parse_cluster_address(given) == address


@pytest.mark.parametrize(
    "given",
    ["ray://head:10001", "http://", "http://head:port", "http://me:secret@head", "ftp://head"],
)
def test_a_text_that_is_not_an_address_is_refused(given):
    with pytest.raises(InvalidInputError) as refused:
        parse_cluster_address(given)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("given", ["", " \n"])
def test_an_empty_address_is_named(given):
    with pytest.raises(InvalidInputError, match=r"address of the Ray cluster is empty.*8265"):
        parse_cluster_address(given)


def test_the_version_of_a_cluster_is_read_with_the_token(server, jobs):
    answer(server, "GET", "/api/version", 200, {"ray_version": "2.60.0"})
    answer(server, "GET", "/api/jobs/", 200, [])
    assert jobs.version() == "2.60.0"
    assert {header for *_, header in server.asked} == {"Bearer t0ken"}
    assert "t0ken" not in repr(jobs.cluster)


def test_a_token_from_a_file_with_a_line_end_is_accepted(server, jobs):
    answer(server, "GET", "/api/jobs/", 200, [])
    RayJobs(Cluster(address=jobs.cluster.address, token=" t0ken\r\n")).list_all()
    assert [header for *_, header in server.asked] == ["Bearer t0ken"]
    assert Cluster(address=jobs.cluster.address, token="\n").token is None


@pytest.mark.parametrize("token", ["s3cr\net", "s3cr\x00et", "s3crét"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(token):
    with pytest.raises(InvalidInputError, match=r"printable ASCII.*RAY_AUTH_TOKEN") as refused:
        Cluster(address="http://head:8265", token=token)
    assert "s3cr" not in str(refused.value)


def test_a_header_that_is_not_valid_is_not_shown():
    cluster = Cluster(address="http://head:8265")
    error = httpx.LocalProtocolError("Illegal header value b'Bearer t0ken'")
    translated = translate_transport_error(cluster, error)
    assert isinstance(translated, InvalidInputError)
    assert "t0ken" not in str(translated)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, {"ray_version": "2.9.3"}, "runs Ray 2.9.3; 2.40 or newer is needed"),
        (200, {"ray_version": "nightly"}, "runs Ray nightly"),
        (200, {"status": "up"}, "is not the dashboard of a Ray cluster"),
        (200, b"<html>hello</html>", "is not the dashboard of a Ray cluster"),
        (404, b"", "HTTP 404: it has no Jobs API"),
        (401, b"", "rejected the token"),
        (403, b"", "rejected the token"),
    ],
)
def test_a_server_that_is_not_a_usable_cluster_is_refused(server, jobs, status, body, words):
    answer(server, "GET", "/api/version", status, body)
    with pytest.raises(InvalidInputError, match=words):
        jobs.version()


def test_a_token_is_never_sent_on(server, jobs):
    answer(server, "GET", "/api/version", 302, b"", Location="http://127.0.0.1:1/login")
    with pytest.raises(InvalidInputError, match="redirects to http://127"):
        jobs.version()


def test_a_server_in_trouble_may_mend_itself(server, jobs):
    answer(server, "GET", "/api/version", 503, b"no agent\nplease try again later")
    with pytest.raises(RayClusterError) as trouble:
        jobs.version()
    assert str(trouble.value) == (
        f"Ray cluster {jobs.cluster.address}: HTTP 503: please try again later."
    )
    answer(server, "GET", "/api/version", 500, b"")
    with pytest.raises(RayClusterError) as trouble:
        jobs.version()
    assert str(trouble.value) == f"Ray cluster {jobs.cluster.address}: HTTP 500 (empty body)."


@pytest.mark.parametrize(
    "page",
    [
        "<html>\n<head><title>Bad Gateway</title></head>\n<body>nginx</body>\n</html>\n",
        "<!DOCTYPE html>\n<style>p {}</style><TITLE lang=en>\n Bad Gateway</TITLE></html>",
        "<html>\n<body><h1>Bad Gateway</h1>\n<p>Try again</p></body>\n</html>\n",
    ],
)
def test_the_error_of_a_proxy_is_the_title_of_its_page(server, jobs, page):
    answer(server, "GET", "/api/version", 502, page.encode())
    with pytest.raises(RayClusterError, match=r": HTTP 502: Bad Gateway\.$"):
        jobs.version()


def test_a_missing_token_is_told_from_a_wrong_one(server, jobs):
    answer(server, "GET", "/api/jobs/a", 401, b"")
    with pytest.raises(InvalidInputError, match="requires a token, and none was given"):
        RayJobs(Cluster(address=jobs.cluster.address)).find("a")


def test_an_address_without_a_server_is_an_outage():
    with pytest.raises(RayClusterError, match="not reachable"):
        RayJobs(Cluster(address="http://127.0.0.1:9")).find("x")


def test_a_submission_id_in_use_is_not_an_error(server, jobs):
    taken = b"Traceback\nValueError: Job with submission_id a already exists. Please use another."
    for status in (400, 500):
        answer(server, "POST", "/api/jobs/", status, taken)
        assert jobs.submit({"entrypoint": "x", "submission_id": "a"}) is False
    answer(server, "POST", "/api/jobs/", 200, {"submission_id": "a"})
    assert jobs.submit({"entrypoint": "x", "submission_id": "a"}) is True


def test_the_error_of_a_refused_job_has_the_reason(server, jobs):
    answer(server, "POST", "/api/jobs/", 400, b"Traceback\nTypeError: entrypoint must be a string")
    with pytest.raises(InvalidInputError, match="TypeError: entrypoint must be a string"):
        jobs.submit({})


def test_a_job_is_found_or_not(server, jobs):
    job = {"submission_id": "a", "status": "FAILED", "driver_exit_code": 2, "new field": [1]}
    answer(server, "GET", "/api/jobs/a", 200, job)
    assert jobs.find("a") == RayJob(submission_id="a", status="FAILED", driver_exit_code=2)
    assert jobs.find("a").is_over
    assert jobs.find("b") is None


def test_a_job_may_have_printed_anything(server, jobs):
    body = b'{"submission_id": "a", "status": "RUNNING", "message": "\\udc80"}'
    answer(server, "GET", "/api/jobs/a", 200, body)
    assert jobs.find("a").status == "RUNNING"
    answer(server, "GET", "/api/jobs/a/logs", 200, b'{"logs": "\\udc80 \\u0000"}')
    assert len(printed(jobs)) == 3


def test_a_log_that_is_gone_is_empty(server, jobs):
    answer(server, "GET", "/api/jobs/a/logs", 500, b"Traceback")
    assert printed(jobs) == ""
    answer(server, "GET", "/api/jobs/a/logs", 200, {"logs": "hello\n"})
    assert printed(jobs) == "hello"
    answer(server, "GET", "/api/jobs/a/logs", 200, {"logs": None})
    assert printed(jobs) == ""


def printed(jobs) -> str:
    log = JobLog(results=None)
    jobs.read_log("a", log)
    log.end()
    return "|".join(log.newest.take(""))


def test_certificates_that_cannot_be_read_are_named(tmp_path):
    cluster = Cluster(address="https://127.0.0.1:9", ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(InvalidInputError, match="pem cannot be read"):
        RayJobs(cluster).version()


def test_a_certificate_must_be_trusted(tmp_path):
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
        httpd.asked, httpd.answers = [], {}
        answer(httpd, "GET", "/api/version", 200, {"ray_version": "2.60.0"})
        answer(httpd, "GET", "/api/jobs/", 200, [])
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        address = f"https://127.0.0.1:{httpd.server_port}"
        with pytest.raises(InvalidInputError, match="is not trusted"):
            RayJobs(Cluster(address=address)).version()
        assert RayJobs(Cluster(address=address, ca_file=certificate)).version() == "2.60.0"
        assert RayJobs(Cluster(address=address, verify=False)).version() == "2.60.0"
        httpd.shutdown()
        thread.join()


def self_signed(directory) -> tuple[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(tz=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(paths[0]), str(paths[1])


def test_a_job_that_has_ended_is_deleted_and_one_that_is_gone_is_no_error(server, jobs):
    answer(server, "DELETE", "/api/jobs/j1", 200, {"deleted": True})
    jobs.delete("j1")
    jobs.delete("gone")
    assert [(method, path) for method, path, _ in server.asked] == [
        ("DELETE", "/api/jobs/j1"),
        ("DELETE", "/api/jobs/gone"),
    ]
