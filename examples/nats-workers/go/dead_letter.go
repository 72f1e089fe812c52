package main

import (
	"context"
	"encoding/json"
	"log"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// bury stores the dead letter, tells the database, and only then terminates the message. A worker that dies in between
// leaves it to the next one, whose dead letter is a duplicate.
func (w *worker) bury(
	message jetstream.Msg, info *jetstream.MsgMetadata, id string, attempts uint64, failed *failure,
) error {
	// A header takes no line ends, PostgreSQL no NUL.
	words := strings.FieldsFunc(failed.reason, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
	reason := strings.ToValidUTF8(strings.Join(words, " "), "?")
	if letters := []rune(reason); len(letters) > 2000 {
		reason = string(letters[:2000])
	}
	sequence := strconv.FormatUint(info.Sequence.Stream, 10)
	headers := nats.Header{}
	for name, values := range message.Headers() {
		if !strings.HasPrefix(name, "Nats-") {
			headers[name] = values
		}
	}
	headers.Set("Nats-Msg-Id", w.config.stream+":"+sequence)
	headers.Set("Dead-Letter-Message-Id", id)
	headers.Set("Dead-Letter-Stream", w.config.stream)
	headers.Set("Dead-Letter-Sequence", sequence)
	headers.Set("Dead-Letter-Subject", message.Subject())
	headers.Set("Dead-Letter-Worker", w.config.name)
	headers.Set("Dead-Letter-Attempts", strconv.FormatUint(attempts, 10))
	headers.Set("Dead-Letter-Reason", reason)
	if failed.status != nil {
		headers.Set("Dead-Letter-Status", strconv.Itoa(*failed.status))
	}
	w.store(&nats.Msg{
		Subject: w.config.deadLetterSubject + "." + message.Subject(), Data: message.Data(), Header: headers,
	})
	// Null unless the envelope names one.
	var webhook struct {
		ID *int32 `json:"webhook_id"`
	}
	_ = json.Unmarshal(message.Data(), &webhook)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := w.database.Exec(ctx, `select jetstream.webhook_dead_letter($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		w.config.stream, info.Sequence.Stream, id, message.Subject(), webhook.ID, w.config.name, attempts, reason,
		failed.status)
	if err != nil {
		log.Printf("%s is in %s, but not in the failure view: %v", id, w.config.deadLetterStream, err)
	}
	return message.TermWithReason(reason)
}

// store tries until the dead letter is stored: without it there is nothing left of the message.
func (w *worker) store(letter *nats.Msg) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := w.js.PublishMsg(ctx, letter)
		cancel()
		if err == nil {
			return
		}
		log.Printf("no dead letter in %s: %v", w.config.deadLetterStream, err)
		time.Sleep(time.Second)
	}
}
