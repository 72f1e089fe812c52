// What becomes of a message that is given up.
import { headers as natsHeaders } from '@nats-io/transport-node';
import { setTimeout as sleep } from 'node:timers/promises';
import { config } from './config.js';
import { messageId } from './message.js';

// Stores the dead letter, tells the database, and only then terminates the message. A worker that dies in between
// leaves it to the next one, whose dead letter is a duplicate.
export async function bury(js, database, message, attempts, { reason, status }) {
  // A header takes no line ends, PostgreSQL no NUL.
  const why = reason.replaceAll(/[\s\p{Cc}]+/gu, ' ').slice(0, 2_000);
  const headers = natsHeaders();
  for (const [name, values] of message.headers ?? []) {
    if (!name.startsWith('Nats-')) values.forEach((value) => headers.append(name, value));
  }
  headers.set('Nats-Msg-Id', `${config.stream}:${message.seq}`);
  headers.set('Dead-Letter-Message-Id', messageId(message));
  headers.set('Dead-Letter-Stream', config.stream);
  headers.set('Dead-Letter-Sequence', String(message.seq));
  headers.set('Dead-Letter-Subject', message.subject);
  headers.set('Dead-Letter-Worker', config.name);
  headers.set('Dead-Letter-Attempts', String(attempts));
  headers.set('Dead-Letter-Reason', why);
  if (status) headers.set('Dead-Letter-Status', String(status));
  await stored(js, `${config.deadLetterSubject}.${message.subject}`, message.data, headers);
  try {
    await database.query('select jetstream.webhook_dead_letter($1, $2, $3, $4, $5, $6, $7, $8, $9)', [
      config.stream, message.seq, messageId(message), message.subject, webhookOf(message), config.name, attempts, why,
      status ?? null,
    ]);
  } catch (error) {
    console.error(`${messageId(message)} is in ${config.deadLetterStream}, but not in the failure view: ${error.message}`);
  }
  message.term(why);
}

// Tries until it is stored: without a dead letter there is nothing left of the message.
async function stored(js, subject, data, headers) {
  for (;;) {
    try {
      return await js.publish(subject, data, { headers });
    } catch (error) {
      console.error(`no dead letter in ${config.deadLetterStream}: ${error.message}`);
      await sleep(1_000);
    }
  }
}

function webhookOf(message) {
  try {
    const { webhook_id: webhook } = message.json();
    return webhook === (webhook | 0) ? webhook : null;
  } catch {
    return null;
  }
}
