"""Whether a machine can do what everest needs, and how to mend it where not.

What is examined is imported inside the checks: a package that is broken is a finding, not their end.
"""
