"""Options of XLA under which programs compile quickly.

Most of the tests' time is compilation: no optimisation, and the older emitters,
which compile a train step in half the time.
"""

FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
