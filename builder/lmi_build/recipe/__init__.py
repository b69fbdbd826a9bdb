"""
The door: YAML text becomes a checked `Recipe`, or every problem it has.

Nothing below this room sees YAML, pydantic or ruamel.yaml.
"""
