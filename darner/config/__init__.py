"""The settings: a TOML file and the command line in, frozen structs out.

Nothing here acts on a setting.
It stands on `darner.errors` alone.
"""
