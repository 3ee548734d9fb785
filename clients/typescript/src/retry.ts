/** Exponential back-off with full jitter; what the hub asks for by RetryInfo is never undercut. Milliseconds. */
export interface Retry {
  /** Ceiling of the first random delay; default 100. */
  initial?: number;
  /** Ceiling of all of them; default 30,000. */
  maximum?: number;
  /** Throw the error when nothing was received for this long; default never. */
  giveUpAfter?: number;
}

/** @internal */
export class Backoff {
  private failures = 0;
  private healthy: number;

  constructor(
    private readonly retry: Retry,
    now: number,
    private readonly random: () => number = Math.random,
  ) {
    this.healthy = now;
  }

  /** The stream moved forward. */
  succeeded(now: number): void {
    this.failures = 0;
    this.healthy = now;
  }

  /** Milliseconds before the next attempt; undefined to give up. */
  delay(asked: number | undefined, now: number): number | undefined {
    const { initial = 100, maximum = 30_000, giveUpAfter } = this.retry;
    if (giveUpAfter !== undefined && now - this.healthy >= giveUpAfter) return undefined;
    const ceiling = Math.min(maximum, initial * 2 ** Math.min(this.failures, 60));
    this.failures += 1;
    return (asked ?? 0) + this.random() * ceiling;
  }
}
