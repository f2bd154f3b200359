"""A process killed before it moves a file into place loses nothing, whichever file it is."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.kill_outcomes import kill_in_process, losses, needs_fork

pytestmark = needs_fork


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The outcomes of kills of commands before their moves of files."""
    return kill_in_process("tests.helpers.kill_commands", tmp_path_factory.mktemp("kills"), "moves")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimize", "similarity"])
def test_a_kill_before_a_move_of_a_command_loses_nothing(name: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    kills = outcomes[name]
    assert len(kills) > 3 and kills[0]["killed"]
    assert len({o["landed"] for o in kills}) > 2  # moves are counted: these kills fall into several stages
    assert losses(kills) == []
