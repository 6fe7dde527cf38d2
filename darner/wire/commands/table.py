"""The table of all commands: the function that serves each verb of the parser."""

from darner._proto import Verb
from darner.wire.clients import Command
from darner.wire.commands.fetching import get
from darner.wire.commands.managing import (
    configure,
    delete,
    flush,
    flush_all,
    flush_all_expired,
    flush_expired,
    reload,
    shutdown,
    status,
    verbosity,
)
from darner.wire.commands.many_gets import get_end
from darner.wire.commands.reporting import dump_config, dump_stats, stats, version
from darner.wire.commands.reserving import confirm, monitor
from darner.wire.commands.session import fatal, me, mn, other_protocol, quit_, refused
from darner.wire.commands.storing import set_
from darner.wire.commands.uploading import set_begin, set_chunk, set_end

_BY_VERB: dict[int, Command] = {
    Verb.GET: get,
    Verb.GETS: get,
    Verb.GET_END: get_end,
    Verb.SET: set_,
    Verb.SET_BEGIN: set_begin,
    Verb.SET_CHUNK: set_chunk,
    Verb.SET_END: set_end,
    Verb.REFUSED: refused,
    Verb.FATAL: fatal,
    Verb.BINARY: other_protocol,
    Verb.TLS: other_protocol,
    Verb.HTTP: other_protocol,
    Verb.DELETE: delete,
    Verb.FLUSH: flush,
    Verb.FLUSH_ALL: flush_all,
    Verb.FLUSH_EXPIRED: flush_expired,
    Verb.FLUSH_ALL_EXPIRED: flush_all_expired,
    Verb.STATS: stats,
    Verb.VERSION: version,
    Verb.VERBOSITY: verbosity,
    Verb.QUIT: quit_,
    Verb.DUMP_STATS: dump_stats,
    Verb.DUMP_CONFIG: dump_config,
    Verb.STATUS: status,
    Verb.RELOAD: reload,
    Verb.SHUTDOWN: shutdown,
    Verb.MONITOR: monitor,
    Verb.CONFIRM: confirm,
    Verb.MN: mn,
    Verb.ME: me,
    Verb.CONFIGURE: configure,
}

# In the order of the verbs, which are the numbers from 0 on.
COMMANDS = [_BY_VERB[verb] for verb in sorted(Verb)]
