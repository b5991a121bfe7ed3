"""The meaning of the options of a URL, compared with pyarrow where that needs no server."""

import pytest
from pyarrow.fs import FileSystem

from airflow_tune_restore.exceptions import InvalidInputError
from airflow_tune_restore.experiments.scan import scan
from airflow_tune_restore.hooks.experiment_storage import Address
from airflow_tune_restore.storage.fs import (
    arrow_filesystem,
    open_filesystem,
    open_store,
    options_of,
)
from airflow_tune_restore.storage.location import Location
from airflow_tune_restore.storage.memory import MemoryStore
from airflow_tune_restore.storage.s3 import S3Store
from tests.support.experiments.built import STATE_NAME

CANARY = "canary-7c1f"
ENDPOINT = "endpoint_override=http://127.0.0.1:9"

REFUSED = [
    ("s3://b/k?regoin=x", "'regoin' of s3://b/k is not known; known are allow_bucket_creation"),
    ("s3://b/k?Region=x", "'Region'"),
    ("s3://b/k?=x", "''"),
    ("s3://b/k?endpoint_override", "endpoint_override .* cannot have this value"),
    ("s3://b/k?scheme&region=x", "scheme .* cannot have this value"),
    ("s3://b/k?region=", "region .* cannot have this value. Write a name"),
    ("s3://b/k?region&scheme=http", "region .* cannot have this value"),
    ("s3://b/k?region=x&region=x", "region .* is given twice"),
    ("s3://b/k?region=a b", "region"),
    ("s3://b/k?region=x#y", "region"),
    ("s3://b/k?region=ö", "region"),
    ("s3://b/k?region=%zz", "region"),
    ("s3://b/k?scheme=ftp", "Write http or https"),
    ("s3://b/k?allow_bucket_creation=yes", "Write true or false"),
    ("s3://b/k?tls_verify_certificates=false", "tls_ca_file_path"),
    ("s3://b/k?tls_ca_file_path=ca.pem", "absolute path"),
    ("s3://b/k?tls_ca_file_path=/nowhere.pem", "is not a file on this machine"),
    ("s3://b/k?smart_defaults=auto", "auto would send requests to AWS"),
    ("s3://b/k?lr=0.1", r"A name in an address cannot hold a \? that is followed by a ="),
    ("gs://b/k?retry_limit=60", "known are endpoint_override, project_id, retry_limit_seconds"),
    ("gs://b/k?retry_limit_seconds=3", "gcsfs always tries for up to 36 s"),
    ("gs://b/k?retry_limit_seconds=-60", "Write 40 or more"),
    ("gs://b/k?scheme=http", "needs endpoint_override"),
    ("abfs://c/k?enable_tls=false", "adlfs uses TLS only"),
    ("abfs://c/k?dfs_authority=.x", "known are background_writes, blob_storage_authority, dfs"),
    ("abfs://c/k?background_writes=maybe", "Write true or false"),
    ("abfs://c/k?credential_kind=cli", "credentials come from the environment"),
    ("file:///k?a=b", "none are known for such an address"),
    ("memory://k?a=b", "none are known"),
    ("hdfs://host/k?user=me", "none are known"),
]

ASKED_OF_THE_CLIENT = ("is not a file on this machine", "needs endpoint_override")


@pytest.mark.parametrize(("url", "match"), REFUSED)
def test_an_option_that_is_not_known_or_does_not_fit_is_refused(url, match):
    with pytest.raises(InvalidInputError, match=match):
        open_store(url)


@pytest.mark.parametrize("url", [url for url, match in REFUSED if match not in ASKED_OF_THE_CLIENT])
def test_it_is_refused_before_an_address_is_handed_on_and_before_ray_sees_it(url):
    for read in (Address.parse, arrow_filesystem):
        with pytest.raises(InvalidInputError):
            read(url)


@pytest.mark.parametrize(
    "options",
    [
        f"access_key={CANARY}",
        f"aws_secret_access_key={CANARY}",
        f"client_secret={CANARY}",
        f"sas_token={CANARY}",
        f"password={CANARY}",
        f"tenant_id={CANARY}",
        f"endpoint_override=http://me:{CANARY}@host",
        f"endpoint_override=http://me:{CANARY}%40host",
        f"region={CANARY}%40",
        f"{CANARY}=@",
    ],
)
@pytest.mark.parametrize("scheme", ["s3", "gs", "abfs"])
@pytest.mark.parametrize("read", [open_store, Address.parse, arrow_filesystem])
def test_a_credential_in_an_option_is_refused_and_not_repeated(read, scheme, options):
    with pytest.raises(InvalidInputError) as caught:
        read(f"{scheme}://bucket/k?{options}")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", sorted(S3Store.OPTIONS))
def test_pyarrow_accepts_each_of_them(name):
    value = {"region": "x", "scheme": "https", "endpoint_override": "h:1", "smart_defaults": "standard",
             "tls_ca_file_path": "/ca.pem"}.get(name, "true")  # fmt: skip
    # with a region and an endpoint nobody is asked
    more = "".join(
        f"&{other}" for other in ("region=y", ENDPOINT) if not other.startswith(f"{name}=")
    )
    url = f"s3://b/k?{name}={value}{more}"
    options_of(Location.parse(url))
    assert FileSystem.from_uri(url)[1] == "b/k"


@pytest.mark.parametrize(
    "options",
    ["&region=x", "region=x&", "region=x&&scheme=http"],
)
def test_an_ampersand_too_many_is_passed_over_as_by_pyarrow(options):
    url = f"s3://b/k?{options}"
    assert options_of(Location.parse(url))["region"] == "x"
    assert FileSystem.from_uri(url)[1] == "b/k"


@pytest.mark.parametrize(
    "url",
    ["gs://anonymous@b/k?retry_limit_seconds=40.5", "gs://anonymous@b/k?retry_limit_seconds=3600",
     "abfs://acc@c/k?background_writes=false&dfs_storage_authority=.dfs.example"],
)  # fmt: skip
def test_what_does_not_change_anything_for_us_is_taken(url, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acc")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "Y2FuYXJ5LWtleQ==")
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # gcsfs would ask the machine for credentials
    assert FileSystem.from_uri(url)[1].endswith("/k")
    location = Location.parse(url)
    assert options_of(location)
    name = location.authority.partition("@")[2]
    assert open_store(str(location._replace(authority=name))).uri.startswith(location.scheme)


@pytest.mark.parametrize(
    ("options", "endpoint"),
    [
        ("endpoint_override=http://h:1", "http://h:1"),
        ("endpoint_override=http%3A%2F%2Fh%3A1", "http://h:1"),
        ("endpoint_override=h:1", "https://h:1"),
        ("scheme=http&endpoint_override=h:1", "http://h:1"),
        ("scheme=https&endpoint_override=http://h:1", "http://h:1"),
        ("scheme=http", "http://s3.amazonaws.com"),
    ],
)
def test_an_endpoint_is_made_of_two_options_as_pyarrow_makes_it(options, endpoint, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    filesystem = open_filesystem(Location.parse(f"s3://b/k?{options}"))
    assert filesystem.s3.meta.endpoint_url == endpoint


@pytest.mark.parametrize(
    ("options", "region"), [("", "us-east-1"), ("&region=eu-west-9", "eu-west-9")]
)
def test_the_region_is_the_options_or_the_environments(options, region, monkeypatch):
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    location = Location.parse(f"s3://b/k?{ENDPOINT}{options}")
    assert open_filesystem(location).s3.meta.region_name == region
    monkeypatch.setenv("AWS_REGION", "eu-west-1")  # which botocore alone would not read
    expected = region if options else "eu-west-1"
    assert open_filesystem(location).s3.meta.region_name == expected


def test_another_blob_service_gets_the_requests_for_the_account(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acc")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "Y2FuYXJ5LWtleQ==")
    for authority, url in {
        ".blob.core.chinacloudapi.cn": "https://acc.blob.core.chinacloudapi.cn",
        "127.0.0.1:9": "https://127.0.0.1:9/acc",
    }.items():
        location = Location.parse(f"abfs://c/k?enable_tls=true&blob_storage_authority={authority}")
        assert open_filesystem(location).account_url == url


@pytest.mark.parametrize("name", ["AZURE_STORAGE_CONNECTION_STRING", "NOTHING"])
def test_a_blob_service_elsewhere_needs_an_account_without_an_endpoint(name, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    monkeypatch.setenv(name, f"BlobEndpoint=http://{CANARY}")
    with pytest.raises(InvalidInputError, match="AZURE_STORAGE_ACCOUNT_NAME") as caught:
        open_store("abfs://c/k?blob_storage_authority=.blob.example")
    assert CANARY not in str(caught.value)


def test_ray_is_given_a_url_that_pyarrow_parses_and_the_options_of_one_that_it_does_not():
    url = f"s3://bucket/team/exp?{ENDPOINT}&region=eu-west-9"
    assert arrow_filesystem(url) == (None, url)
    filesystem, path = arrow_filesystem(f"s3://bucket/why? größe?{ENDPOINT}&region=eu-west-9")
    assert path == "bucket/why? größe"
    assert filesystem == FileSystem.from_uri(url)[0]


def test_a_store_below_keeps_the_options_and_messages_show_them():
    store = open_store(f"s3://bucket/team/?{ENDPOINT}")
    assert store.uri == f"s3://bucket/team?{ENDPOINT}"
    assert store.at("exp").uri == f"s3://bucket/team/exp?{ENDPOINT}"
    assert open_store(store.at("exp").uri).uri == store.at("exp").uri


def test_a_scan_passes_over_a_name_that_an_address_would_end_in():
    store = MemoryStore()
    for name in ("good", "q?r", "exp?lr=0.1"):
        store.put(f"{name}/{STATE_NAME}", b"")
    assert [report.name for report in scan(store)] == ["good", "q?r"]
