"""The papers that `potluck reproduce` knows: a line each."""

from __future__ import annotations

from collections.abc import Mapping

from potluck.lab.studies.ademamix import AdEMAMixStudy
from potluck.lab.studies.crisp import CrispStudy
from potluck.lab.studies.smalltalk import SmallTalkStudy
from potluck.lab.studies.soup import SoupStudy
from potluck.lab.study import Study

STUDIES: Mapping[str, Study] = {
    "smalltalk": SmallTalkStudy(),
    "ademamix": AdEMAMixStudy(),
    "crisp": CrispStudy(),
    "soup": SoupStudy(),
}
