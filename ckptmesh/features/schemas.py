"""Schemas of values: checked by the client, named in the commit, demanded by a contract.

The store never looks into values. So a client checks the value, and the commit names the digest of
the schema that it was checked with; a contract refuses whatever names another, or none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from hashlib import sha256
from typing import Any

from ckptmesh.errors import InvalidValue, MissingExtra, Misuse


class Schema:
    """A JSON Schema: `orders = Schema({"type": "object", "required": ["offset"]})`, once
    `mesh.contract("orders", schema=orders)`, then `mesh.commit("orders", value, schema=orders)`.

    Needs the extra `ckptmesh[schema]`. Raises `Misuse` where it is no schema, `MissingExtra`.
    (JSON Schema, draft 2020-12 where `$schema` names no other.)
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        try:
            import jsonschema
        except ImportError:
            raise MissingExtra("a schema needs jsonschema",
                               hint="pip install 'ckptmesh[schema]'") from None
        try:
            self._text = json.dumps(document, sort_keys=True, separators=(",", ":"),
                                    ensure_ascii=False, allow_nan=False)
            kind = jsonschema.validators.validator_for(document, jsonschema.Draft202012Validator)
            kind.check_schema(document)
        except (TypeError, ValueError, jsonschema.SchemaError) as error:
            told = getattr(error, "message", error)
            raise Misuse(f"this is no JSON Schema: {told!s:.200}") from None
        self._validator = kind(json.loads(self._text))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the document as JSON, keys sorted, without spaces; in hex."""
        return sha256(self._text.encode()).hexdigest()

    @property
    def document(self) -> dict[str, Any]:
        """What the store keeps beside the contract, for people."""
        found: dict[str, Any] = json.loads(self._text)
        return found

    def check(self, value: Any) -> None:
        """Refuse a value that does not fit. Raises `InvalidValue` naming the place in it."""
        error = next(self._validator.iter_errors(value), None)
        if error is not None:
            raise InvalidValue(f"the value does not fit its schema at {error.json_path}: "
                               f"{error.message:.200}", schema=self.digest)

    def __repr__(self) -> str:
        return f"Schema({self.digest[:16]}…)"
