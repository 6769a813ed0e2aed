"""Run by every Python that a test starts: garbage is collected less often.

The imports of torch and transformers leave nothing to collect, but the search takes a fifth of their time, and many
processes of these tests do little else.
"""

import gc

gc.set_threshold(100_000, 20, 100)
