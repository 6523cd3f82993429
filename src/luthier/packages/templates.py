"""Chat templates: programs that come with a model."""

import json
import re

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from luthier.packages.contents import first_line


def template_problem(text: str) -> str | None:
    """Say what is wrong with a chat template: it reaches for the interpreter or for files, or cannot write a conversation."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _: "2000-01-01"}
    # Jinja's own knows none of the options that chat templates give it
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    try:
        # the mark of transformers' own extension: what stands between the two is written all the same
        plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", text)
        reached = _reaches(environment.parse(plain))
        if reached:
            return f"breaks out of the sandbox: {reached}"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        tokens = {"bos_token": "", "eos_token": "", "pad_token": "", "unk_token": ""}
        template = environment.from_string(plain)
        asked = template.render(messages=turns[:1], add_generation_prompt=True, **tokens)
        told = template.render(messages=turns, add_generation_prompt=False, **tokens)
    except SecurityError as error:
        return f"breaks out of the sandbox: {error}"
    except Exception as error:  # a template can raise whatever its filters raise
        return f"cannot write a conversation: {first_line(error)}"
    return None if asked and told else "writes nothing of a conversation"


def _reaches(tree: nodes.Template) -> str | None:
    """Name what a template must never do; the sandbox would stop it only when it comes to it."""
    for node in tree.find_all(nodes.Node):
        if isinstance(node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends):
            return "it reads another file"
        if isinstance(node, nodes.Pow):
            return "it computes a power, which can take all memory"
        names = [node.attr] if isinstance(node, nodes.Getattr) else []
        names += [node.value] if isinstance(node, nodes.Const) and isinstance(node.value, str) else []
        for name in names:
            hidden = name.startswith("_") if isinstance(node, nodes.Getattr) else re.search(r"__\w+__", name)
            if hidden:
                return f"it names {name!r}"
    return None
