"""What happens to a domain and its meter: the hook, `enable --live`, the policy, events, and the state of a meter.

May import the ground, host, domains and helper; daemon, doctor and commands use it.
"""
