"""Where the tests find your code: they call these four names and nothing else.

As it is, all four come from ``my_relay.py``. If your code lies in modules of your own, import or wrap it here, such as

    from loop import Relay

    def my_relay(student, teacher, max_tokens, max_calls):
        return Relay(student, teacher).answer(max_tokens, max_calls)
"""

from my_relay import batch_mask, chosen, group_rewards, my_relay

__all__ = ["batch_mask", "chosen", "group_rewards", "my_relay"]
