// Whether and when to try again.
import { config } from './config.js';

// The endpoint may answer otherwise later.
export function worthAnotherTry(status) {
  return [408, 425, 429].includes(status) || status >= 500;
}

// Exponential, half of it random, and as long as the endpoint asks for if that is longer.
export function delayMs(attempts, retryAfter) {
  const backoff = Math.min(config.backoffBaseMs * 2 ** (attempts - 1), config.backoffCapMs) * (0.5 + Math.random() / 2);
  const asked = /^\d+$/.test(retryAfter ?? '') ? retryAfter * 1000 : Date.parse(retryAfter) - Date.now();
  return Math.round(Math.max(backoff, Math.min(asked || 0, config.retryAfterCapMs)));
}
