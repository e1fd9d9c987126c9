"""Publishing: which files go up, what the Hub's refusals become, and that a cut connection costs no work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.hub import TOKEN, UploadHub, upload_hub
from helpers.input import no_network, write
from huggingface_hub import constants

from upft_mlx.errors import OfflineError, PublishError, RecipeError
from upft_mlx.events import Event, Note
from upft_mlx.hub import upload as publish
from upft_mlx.hub.upload import files_to_push, listing, push
from upft_mlx.recipe.publish import Publish

__all__ = ["no_network"]
pytestmark = [
    pytest.mark.usefixtures("no_network"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # the client's own upload
]

UP = {
    *("README.md", "LICENSE", "config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"),
}
OURS = Publish(repo="user/tuned")


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    """A fused folder with what belongs into it and much that does not."""
    folder = tmp_path / "run" / "fused"
    write(folder / "README.md", "---\ntags: [mlx, upft_mlx]\n---\n# tuned\n")
    for name in UP - {"README.md", "model.safetensors"}:
        write(folder / name, "{}")
    mx.save_safetensors(str(folder / "model.safetensors"), {"a": mx.random.normal((64, 64))}, {"format": "mlx"})
    for name in (
        *("solutions.jsonl", "dataset/train.jsonl", "evaluation/gpqa/tuned.jsonl", "ledger.json", "recipe.json"),
        *(".env", "token", "fidelity.json", "summary.json", "optimizer.safetensors", "notes.md", "tuned.jsonl"),
    ):
        write(folder / name, "not to be published")
        write(folder.parent / name, "not to be published")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """The stand-in, with the real client in this process talking to it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its own transfer protocol, which the stand-in lacks
    monkeypatch.setattr(publish, "WAITS", (0.01, 0.01, 0.01))
    with upload_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


def test_exactly_the_models_files_go_up(hub: UploadHub, fused: Path) -> None:
    assert push(OURS, fused) == f"{hub.endpoint}/user/tuned"
    stored = hub.repos["user/tuned"]
    assert set(stored) == UP | {".gitattributes"}
    assert all(stored[name] == (fused / name).read_bytes() for name in UP)


def test_a_dry_run_lists_what_goes_up_and_what_stays(fused: Path) -> None:
    found = listing(OURS, fused)
    assert {file["path"] for file in found["files"]} == UP
    assert found["bytes"] == sum((fused / name).stat().st_size for name in UP)
    assert (found["repo"], found["private"]) == ("user/tuned", True)
    assert {"solutions.jsonl", ".env", "evaluation"} <= set(found["left_out"])


@pytest.mark.parametrize("private", [True, False])
def test_a_new_repository_is_private_unless_the_recipe_says_otherwise(
    hub: UploadHub, fused: Path, private: bool
) -> None:
    push(OURS if private else Publish(repo="user/tuned", private=False), fused)
    assert hub.private == {"user/tuned": private}


# Refusals.


def refused(publish: Publish, folder: Path, *parts: str, kind: type[Exception] = PublishError) -> None:
    """The push ends with this kind of error, which says `parts`; neither it nor a note before it tells a secret."""
    notes: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    with pytest.raises(kind) as caught:
        push(publish, folder, note)
    for part in parts:
        assert part in str(caught.value), (part, caught.value)
    for text in (*notes, str(caught.value)):
        assert TOKEN not in text
        assert "X-Signature" not in text


def test_without_a_login_nothing_is_tried(hub: UploadHub, fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(fused / "no-such-token"))
    refused(OURS, fused, "not logged in", "`hf auth login`", "HF_TOKEN")
    assert hub.asked == []


def test_401_a_token_that_the_hub_does_not_know(hub: UploadHub, fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    refused(OURS, fused, "publish.repo: user/tuned: the Hub does not know your token", "`hf auth login`", "(HTTP 401)")


def test_403_a_name_space_of_somebody_else(hub: UploadHub, fused: Path) -> None:
    refused(
        Publish(repo="org/tuned"),
        fused,
        "your token may not write to org",
        "(HTTP 403); use one with write access, or another name",
    )


def test_404_an_owner_that_does_not_exist(hub: UploadHub, fused: Path) -> None:
    refused(Publish(repo="nobody/tuned"), fused, "no such user or organisation as nobody", "(HTTP 404)")


def test_409_a_name_that_holds_something_else(hub: UploadHub, fused: Path) -> None:
    hub.repos["user/tuned"] = {"README.md": b"---\ntags: [mine]\n---\n", "model.safetensors": b"precious"}
    refused(OURS, fused, "publish.repo: user/tuned: the repository exists", "choose another name")
    assert hub.repos["user/tuned"]["model.safetensors"] == b"precious"


def test_409_a_change_by_somebody_else_at_the_same_time(hub: UploadHub, fused: Path) -> None:
    hub.faults["/commit/"] = [409]
    refused(OURS, fused, "changed the repository at the same time (HTTP 409); run the same command again")


def test_500_that_lasts(hub: UploadHub, fused: Path) -> None:
    hub.faults["/api/repos/create"] = [500] * 4
    refused(OURS, fused, "the Hub has a problem (HTTP 500); run the same command to continue")


def test_an_address_with_a_signature_is_told_without_it(hub: UploadHub, fused: Path) -> None:
    """Large files go to signed addresses, which let anyone upload who reads them in an error."""
    hub.faults["X-Signature=secret"] = [413]
    refused(OURS, fused, f"{hub.endpoint}/lfs/", "(HTTP 413)")


def test_429_is_waited_for_and_told_when_it_lasts(hub: UploadHub, fused: Path) -> None:
    hub.faults["/commit/"] = [429, 408]
    push(OURS, fused)
    assert set(hub.repos["user/tuned"]) == UP | {".gitattributes"}
    hub.faults["/commit/"] = [429] * 4
    refused(OURS, fused, "the Hub limits the number of requests (HTTP 429); wait a few minutes")
    assert hub.faults["/commit/"] == []


@pytest.mark.parametrize("status", [400, 403, 409, 413])
def test_what_will_not_pass_is_not_tried_again(hub: UploadHub, fused: Path, status: int) -> None:
    hub.faults["/commit/"] = [status] * 2
    refused(OURS, fused, f"(HTTP {status})")
    assert hub.faults["/commit/"] == [status]


def test_500_that_passes_is_survived(hub: UploadHub, fused: Path) -> None:
    hub.faults["/api/repos/create"] = [500, 503]
    seen: list[Event] = []
    push(OURS, fused, seen.append)
    assert set(hub.repos["user/tuned"]) == UP | {".gitattributes"}
    assert sum(isinstance(event, Note) and "retrying" in event.text for event in seen) == 2


def test_a_hub_that_is_not_there(fused: Path, hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with upload_hub() as gone:
        monkeypatch.setattr(constants, "ENDPOINT", gone.endpoint)
    refused(OURS, fused, "the Hub cannot be reached", "run the same command to continue", kind=OfflineError)


def test_the_network_switched_off(hub: UploadHub, fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(OURS, fused, "the network, which is off", kind=OfflineError)
    assert hub.asked == []


def test_a_recipe_without_a_name_for_it(fused: Path) -> None:
    refused(Publish(), fused, "publish.repo: missing", "--set publish.repo=user/name", kind=RecipeError)


@pytest.mark.parametrize(
    "repo",
    ["tuned", "user/", "/tuned", "user/a/b", "user/a--b", "user/a..b", "user/-a", "user/a.", "us er/a", "user/a.git"],
)
def test_a_bad_name_is_refused_with_the_recipe(repo: str) -> None:
    with pytest.raises(ValueError, match="is not a user/name that the Hub allows"):
        Publish(repo=repo)


@pytest.mark.parametrize("repo", ["user/tuned", "my-org/Qwen2.5-0.5B_upft", "u/x"])
def test_good_names_are_taken(repo: str) -> None:
    assert Publish(repo=repo).repo == repo


# What is there already.


def test_an_earlier_push_is_replaced_with_no_shard_of_it_left(hub: UploadHub, fused: Path) -> None:
    push(OURS, fused)
    hub.repos["user/tuned"]["model-00001-of-00002.safetensors"] = b"old"
    theirs = {"notes.txt", "handler.py", "examples/ask.py", "NOTICE", "LICENSES/MIT.txt", "4bit/model.safetensors"}
    hub.repos["user/tuned"].update(dict.fromkeys(theirs, b"the owner's own"))
    write(fused / "config.json", '{"new": true}')
    push(OURS, fused)
    assert set(hub.repos["user/tuned"]) == UP | {".gitattributes"} | theirs
    assert json.loads(hub.repos["user/tuned"]["config.json"]) == {"new": True}


def test_a_public_repository_is_not_pushed_to_by_a_private_recipe(hub: UploadHub, fused: Path) -> None:
    push(Publish(repo="user/tuned", private=False), fused)
    refused(OURS, fused, "exists and is public, but publish.private is true")


def test_a_private_repository_is_not_called_public(hub: UploadHub, fused: Path) -> None:
    push(OURS, fused)
    refused(Publish(repo="user/tuned", private=False), fused, "exists and is private, but publish.private is false")


# Connections.


def test_a_connection_that_is_cut_during_an_upload_is_survived(hub: UploadHub, fused: Path) -> None:
    hub.cuts = 1
    push(OURS, fused)
    assert hub.repos["user/tuned"]["model.safetensors"] == (fused / "model.safetensors").read_bytes()
    assert list(hub.uploads.values()) == [2]


def test_what_is_uploaded_is_not_sent_again_after_a_fault(hub: UploadHub, fused: Path) -> None:
    hub.faults["/commit/"] = [502]
    push(OURS, fused)
    assert set(hub.repos["user/tuned"]) == UP | {".gitattributes"}
    assert list(hub.uploads.values()) == [1]


# Secrets.


@pytest.mark.parametrize("secret", [TOKEN, "hf_" + "a1B2" * 9])
def test_a_file_with_a_token_is_not_uploaded(
    hub: UploadHub, fused: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    write(fused / "config.json", json.dumps({"note": f"use {secret} here"}))
    refused(OURS, fused, "config.json: contains an access token or a private key, so it will not be uploaded")
    assert hub.repos == {}


def test_a_link_out_of_the_folder_is_not_followed(fused: Path) -> None:
    (fused / "merges.txt").symlink_to(fused.parent / "solutions.jsonl")
    with pytest.raises(PublishError, match=r"merges\.txt: is not a plain file"):
        files_to_push(fused)
