package walcast

import (
	"math/rand/v2"
	"time"
)

// Retry is exponential back-off with full jitter; what the hub asks for by RetryInfo is never undercut.
type Retry struct {
	// Initial is the ceiling of the first random delay; 0 is 100 ms.
	Initial time.Duration
	// Maximum is the ceiling of all of them; 0 is 30 s.
	Maximum time.Duration
	// GiveUpAfter ends the subscription with the error when nothing was received for this long; 0 is never.
	GiveUpAfter time.Duration
}

type backoff struct {
	retry    Retry
	jitter   func(ceiling time.Duration) time.Duration
	failures int
	healthy  time.Time
}

func newBackoff(retry Retry, now time.Time) *backoff {
	if retry.Initial <= 0 {
		retry.Initial = 100 * time.Millisecond
	}
	if retry.Maximum <= 0 {
		retry.Maximum = 30 * time.Second
	}
	return &backoff{
		retry:   retry,
		jitter:  func(ceiling time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(ceiling) + 1)) },
		healthy: now,
	}
}

// succeeded: the stream moved forward.
func (b *backoff) succeeded(now time.Time) {
	b.failures = 0
	b.healthy = now
}

// delay before the next attempt; false to give up.
func (b *backoff) delay(asked time.Duration, now time.Time) (time.Duration, bool) {
	if limit := b.retry.GiveUpAfter; limit > 0 && now.Sub(b.healthy) >= limit {
		return 0, false
	}
	ceiling := b.retry.Initial
	for n := 0; n < b.failures && ceiling < b.retry.Maximum; n++ {
		ceiling *= 2
	}
	ceiling = min(ceiling, b.retry.Maximum)
	b.failures++
	return max(asked, 0) + b.jitter(ceiling), true
}
