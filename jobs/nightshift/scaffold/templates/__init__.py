"""What scaffolded files begin as: templates, in which dbt's own ``{{ }}`` stand as they are."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("nightshift.scaffold", "templates"),
    block_start_string="<%",
    block_end_string="%>",
    variable_start_string="<<",
    variable_end_string=">>",
    comment_start_string="<#",
    comment_end_string="#>",
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    undefined=StrictUndefined,
    autoescape=False,  # Python, SQL and YAML are written, no HTML
)
# as JSON it is a string of Python and of YAML too
_TEMPLATES.filters["quoted"] = lambda text: json.dumps(str(text), ensure_ascii=False)
_TEMPLATES.filters["tuple"] = lambda items: (
    f"({', '.join(json.dumps(each) if isinstance(each, str) else str(each) for each in items)}"
    f"{',' if len(items) == 1 else ''})"
)


def render(template: str, **values: object) -> str:
    """The text of a template."""
    return _TEMPLATES.get_template(template).render(**values)
