"""Fixtures of the topologies: certificates, and commands as a person would type them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from topology import Certificates

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder, ca = tmp_path_factory.mktemp("certificates"), trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("producer@example.org")
    ca.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other_ca.pem")
    for name, signed in (("server", server), ("client", client)):
        signed.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        signed.private_key_pem.write_to_path(folder / f"{name}.key")
    return Certificates(
        ca=f"{folder}/ca.pem",
        other_ca=f"{folder}/other_ca.pem",
        server=f"{folder}/server.pem",
        server_key=f"{folder}/server.key",
        client=f"{folder}/client.pem",
        client_key=f"{folder}/client.key",
    )


@pytest.fixture
def amn() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `amn` with these arguments; variables of the environment as keywords."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ops.cli", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "AMN_ARTIFACTS": f"{ROOT}/artifacts/lvm",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
