"""Where the repository is that the documentation is built from."""

from collections.abc import Mapping


def repository_url(environment: Mapping[str, str]) -> str:
    """The URL of the repository, as GitHub or Read the Docs sets it; else an empty string.

    Example:
        >>> repository_url({"READTHEDOCS_GIT_CLONE_URL": "https://example.org/a/b.git"})
        'https://example.org/a/b'
        >>> repository_url({"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "a/b"})
        'https://example.org/a/b'
        >>> repository_url({})
        ''
    """
    if "GITHUB_REPOSITORY" in environment:
        return f"{environment['GITHUB_SERVER_URL']}/{environment['GITHUB_REPOSITORY']}"
    return environment.get("READTHEDOCS_GIT_CLONE_URL", "").removesuffix(".git")
