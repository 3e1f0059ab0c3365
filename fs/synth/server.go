package synth

import "time"

// SettleWait bounds how long a look-up waits for a [Settler].
const SettleWait = 100 * time.Millisecond
