"""A module's functions, each compiled whole.

Called as they are, each of their operations would be compiled alone, which
takes several times as long.
"""

import functools
import inspect

import jax


class Module:
  """Has what a module has; the functions' keywords are static."""

  def __init__(self, module):
    self._module = module
    self._function = functools.cache(_compiled)

  def __getattr__(self, name):
    found = getattr(self._module, name)
    return self._function(found) if inspect.isfunction(found) else found


def _compiled(function):
  names = [
    parameter.name
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY
  ]
  return jax.jit(function, static_argnames=names)
