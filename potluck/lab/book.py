"""The papers that `potluck reproduce` knows: a line each."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.smalltalk import SmallTalkStudy
from potluck.lab.study import Study

STUDIES: Mapping[str, Study] = {
    "smalltalk": SmallTalkStudy(),
}
