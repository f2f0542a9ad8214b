"""Champion and back: refusals, a lease, a write-ahead journal, decision records, and the URI in Git.

MLflow's aliases are the registry's truth, Git is the deployment's. A change of champion is one `Transition` from a
state to another; `transition.apply` carries it out, and whoever comes after a crash finishes or undoes it.
"""
