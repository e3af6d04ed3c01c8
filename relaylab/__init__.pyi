from .evaluation.evaluate import evaluate as evaluate
from .relay.api_teacher import APITeacher as APITeacher
from .relay.call_rules import CallAt as CallAt
from .relay.call_rules import CallWhenUnsure as CallWhenUnsure
from .relay.config import RelayConfig as RelayConfig
from .relay.pair import Pair as Pair
from .relay.pair import load_pair as load_pair
from .relay.pair import load_teacher as load_teacher
from .relay.relay import Relay as Relay
from .relay.teachers import NoTeacher as NoTeacher
from .relay.teachers import ScriptedTeacher as ScriptedTeacher
from .sweep.notebook import result as result
from .tasks.data import load_problems as load_problems
from .tasks.suites import SUITES as SUITES
from .tasks.suites import problem as problem
from .tasks.suites import problems as problems
from .trace import Call as Call
from .trace import Trace as Trace
from .trace import read_traces as read_traces
from .training.grpo import train as train
from .training.warmup import warmup as warmup
from .views.atlas import atlas as atlas
from .views.counterfactual_view import CounterfactualView as CounterfactualView
from .views.player import player as player
from .views.playground import Playground as Playground

__version__: str
