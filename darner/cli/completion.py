"""The command that prints what a shell needs to complete command lines: `completion`."""

import click
from click.shell_completion import get_completion_class

from darner.cli.connecting import SETTINGS


@click.command(
    short_help="Print the completion for a shell.",
    context_settings=SETTINGS,
    epilog="""\b
Examples:
  eval "$(darner completion bash)"            in ~/.bashrc
  eval "$(darner completion zsh)"             in ~/.zshrc, behind compinit
  darner completion fish > ~/.config/fish/completions/darner.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print a script that has SHELL complete the commands of darner and their options."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "darner", "_DARNER_COMPLETE").source()
    # fish: the text of an option may have commas, too
    click.echo(script.replace('string split ","', 'string split --max 1 ","'))
