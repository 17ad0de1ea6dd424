# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The site of `make docs`: the pages here, which GitHub shows too, and what antsibull-docs writes of modules and roles.

Links to other documentation are made here, so that neither a build nor a reader needs the network for this site.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform

TOP = Path(__file__).parents[1]
REPOSITORY = "https://github.com/keyferry/keyferry.redis"
ANSIBLE = "https://docs.ansible.com/ansible/latest"
# The labels of Ansible's own documentation that antsibull-docs refers to.
ANSIBLE_PAGES = {
    "action_plugins": "plugins/action.html",
    "ansible_configuration_settings": "reference_appendices/config.html",
    "common_return_values": "reference_appendices/common_return_values.html",
}

KINDS = ("module", "role")

project = "keyferry.redis"
copyright = "the keyferry.redis authors"
extensions = ["myst_parser", "sphinx_antsibull_ext"]
exclude_patterns = ["examples"]
nitpicky = True
smartquotes = False
highlight_language = "text"

# The anchors that GitHub gives to headings.
myst_heading_anchors = 3

html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# Colours are those of the theme, which has a light and a dark one (_static/site.css).
antsibull_ext_color_scheme = "none"
pygments_style = "friendly"
pygments_dark_style = "monokai"


class PageLinks(SphinxTransform):
    """In the pages, the name of a module or a role leads to its reference, and a file of the repository to GitHub."""

    default_priority = 400

    def apply(self, **_kwargs: Any) -> None:
        if self.env.docname.startswith("reference/"):
            return
        for literal in list(self.document.findall(nodes.literal)):
            self._link_to_reference(literal)
        for link in list(self.document.findall(pending_xref)):
            path = str(link["reftarget"])
            if (TOP / "docs" / path).exists() or (TOP / path).exists():
                link.replace_self(link_to(f"{REPOSITORY}/blob/main/{path.removeprefix('../')}", *link.children))

    def _link_to_reference(self, literal: nodes.literal) -> None:
        name = literal.astext().removeprefix("keyferry.redis.")
        page = next((f"{name}_{kind}" for kind in KINDS if f"reference/{name}_{kind}" in self.env.found_docs), None)
        if page and not isinstance(literal.parent, nodes.reference):
            label = f"ansible_collections.keyferry.redis.{page}"
            doc = self.env.docname
            link = pending_xref("", refdomain="std", reftype="ref", reftarget=label, refexplicit=True, refdoc=doc)
            literal.replace_self(link)
            link += literal


def link_to(url: str, *text: nodes.Node) -> nodes.reference:
    return nodes.reference("", "", *text, refuri=url)


def link_elsewhere(
    _app: Sphinx, _env: BuildEnvironment, missing: pending_xref, text: nodes.Element
) -> nodes.reference | None:
    """What the reference leads to in Ansible's own documentation."""
    label = str(missing["reftarget"])
    if label in ANSIBLE_PAGES:
        return link_to(f"{ANSIBLE}/{ANSIBLE_PAGES[label]}", text)
    if label.startswith("ansible_collections.") and not label.startswith("ansible_collections.keyferry."):
        namespace, collection, plugin = label.split(".")[1:4]
        return link_to(f"{ANSIBLE}/collections/{namespace}/{collection}/{plugin}.html", text)
    return None


def shorten(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Fit the reference's pages to the theme: short names at the side, where it lists a page's sections already."""
    if docname.startswith("reference/"):
        text = source[0].replace(".. contents::\n   :local:\n   :depth: 1\n", "")
        source[0] = re.sub(r"^    ((\w+)_(?:module|role))$", r"    \2 <\1>", text, flags=re.MULTILINE)


def setup(app: Sphinx) -> None:
    app.connect("source-read", shorten)
    app.add_transform(PageLinks)
    app.connect("missing-reference", link_elsewhere)
