package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// How long one pull waits for a message; stopping an idle worker takes as long.
	pullWait = 2 * time.Second
	// Longest wait for an answer of the database.
	patience = 10 * time.Second
)

// The answers to a question for secrets that stay: there is none of that name (undefined_object), or they are not sent to
// this url. All else is of the database's state, and somebody mends it.
var denied = []string{"42704", "PJ001"}

type worker struct {
	config     config
	js         jetstream.JetStream
	database   *pgxpool.Pool
	statistics *statistics
	client     *http.Client

	mutex    sync.Mutex
	consumer jetstream.Consumer // nil until there is one
}

// The call a message asks for.
type envelope struct {
	URL       string                `json:"webhook_url"`
	Data      json.RawMessage       `json:"data"`
	Headers   map[string]headerText `json:"headers"`
	Method    string                `json:"method"`
	TimeoutMS int                   `json:"timeout_ms"`
	Webhook   *int32                `json:"webhook_id"`
}

// The text of a header value: a string as it is, a number or a boolean as it was written, those of a list with commas
// between them.
type headerText string

func (h *headerText) UnmarshalJSON(data []byte) error {
	switch data[0] {
	case '"':
		return json.Unmarshal(data, (*string)(h))
	case '[':
		var list []json.RawMessage
		if err := json.Unmarshal(data, &list); err != nil {
			return err
		}
		texts := make([]string, len(list))
		for n, each := range list {
			var text headerText
			if each[0] == '[' {
				return errors.New("a header is a list of lists")
			} else if err := text.UnmarshalJSON(each); err != nil {
				return err
			}
			texts[n] = string(text)
		}
		*h = headerText(strings.Join(texts, ", "))
	case '{', 'n':
		return errors.New("a header is neither text nor number nor boolean")
	default:
		*h = headerText(data)
	}
	return nil
}

// Why a call did not go well, and whether (and when) to try again.
type failure struct {
	reason     string
	status     *int // nil without an answer
	again      bool
	retryAfter string
}

// shared gives the consumer of all workers, and makes it if there is none. How often a message is tried is decided by
// the worker, from its delivery count, and not by the consumer's MaxDeliver: that would drop a message whose worker dies
// in the last attempt.
func (w *worker) shared(ctx context.Context) (jetstream.Consumer, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.consumer != nil {
		return w.consumer, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := w.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: w.config.deadLetterStream, Subjects: []string{w.config.deadLetterSubject + ".>"},
		Description: "Calls of webhooks that were given up", MaxAge: w.config.deadLetterMaxAge,
	})
	if err == nil || errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		w.consumer, err = w.js.CreateOrUpdateConsumer(ctx, w.config.stream, jetstream.ConsumerConfig{
			Durable: w.config.consumer, FilterSubject: w.config.subject, AckPolicy: jetstream.AckExplicitPolicy,
			AckWait: w.config.ackWait, MaxDeliver: -1, MaxAckPending: w.config.maxAckPending,
		})
	}
	if err != nil {
		w.consumer = nil
		log.Printf("no consumer of %s: %v", w.config.stream, err)
		time.Sleep(time.Second)
	}
	return w.consumer, err
}

// forget makes the next pull look for the consumer again.
func (w *worker) forget(consumer jetstream.Consumer, reason error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.consumer == consumer {
		w.consumer = nil
		log.Printf("no messages from %s: %v", w.config.stream, reason)
	}
}

// waiting tells how many messages wait for the consumer.
func (w *worker) waiting() *uint64 {
	w.mutex.Lock()
	consumer := w.consumer
	w.mutex.Unlock()
	if consumer == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	info, err := consumer.Info(ctx)
	if err != nil {
		return nil
	}
	return &info.NumPending
}

// pull makes one call at a time; as many of these run as calls may be in flight.
func (w *worker) pull(ctx context.Context) {
	for ctx.Err() == nil {
		consumer, err := w.shared(ctx)
		if err != nil {
			continue
		}
		message, err := consumer.Next(jetstream.FetchMaxWait(pullWait))
		if err == nil {
			w.handle(ctx, message)
		} else if !errors.Is(err, nats.ErrTimeout) && ctx.Err() == nil {
			w.forget(consumer, err)
			time.Sleep(time.Second)
		}
	}
}

// handle makes the call of one message and settles it. It ends by itself, also while the worker stops.
func (w *worker) handle(ctx context.Context, message jetstream.Msg) {
	begin := time.Now()
	info, err := message.Metadata()
	if err != nil {
		log.Printf("not a JetStream message: %v", err)
		return
	}
	defer keepAlive(message, w.config.ackWait/3)()
	id := messageID(message, info)
	last := uint64(w.config.maxDeliver)
	attempts := min(info.NumDelivered, last)
	failed := &failure{reason: fmt.Sprintf("the worker did not come back from attempt %d", attempts)}
	if info.NumDelivered <= last {
		failed = w.attempt(ctx, message, id)
	}
	outcome := func(t *totals) { t.succeeded++ }
	switch {
	case failed == nil:
		err = message.Ack()
	case failed.again && info.NumDelivered < last:
		outcome = func(t *totals) { t.retried++ }
		err = message.NakWithDelay(w.delay(attempts, failed.retryAfter))
	default:
		outcome = func(t *totals) { t.dead++ }
		err = w.bury(message, info, id, attempts, failed)
	}
	if failed != nil {
		log.Printf("%s attempt %d: %s", id, attempts, failed.reason)
	}
	if err != nil {
		log.Printf("%s is not settled and will be delivered again: %v", id, err)
		return
	}
	w.statistics.count(info.NumDelivered, outcome, time.Since(begin))
}

// keepAlive tells the server again and again that the message is being worked on, until the returned function is called.
func keepAlive(message jetstream.Msg, every time.Duration) (end func()) {
	ctx, end := context.WithCancel(context.Background())
	go func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				_ = message.InProgress()
			case <-ctx.Done():
				return
			}
		}
	}()
	return end
}

// attempt makes the call; nil if it went well.
func (w *worker) attempt(ctx context.Context, message jetstream.Msg, id string) *failure {
	got, err := w.request(ctx, message, id)
	var never impossible
	switch status := got.status; {
	case err != nil:
		return &failure{reason: err.Error(), again: !errors.As(err, &never)}
	case status >= 200 && status < 300:
		return nil
	default:
		again := status == 408 || status == 425 || status == 429 || status >= 500
		return &failure{fmt.Sprintf("HTTP status %d", status), &status, again, got.retryAfter}
	}
}

func (w *worker) request(ctx context.Context, message jetstream.Msg, id string) (answer, error) {
	asked, err := w.read(message.Data())
	if err != nil {
		return answer{}, err
	}
	headers := http.Header{"Content-Type": {"application/json"}}
	for name, values := range message.Headers() {
		if strings.EqualFold(name, "traceparent") || strings.EqualFold(name, "tracestate") {
			headers[http.CanonicalHeaderKey(name)] = values
		}
	}
	for name, value := range asked.Headers {
		headers.Set(name, string(value))
	}
	headers.Set("Idempotency-Key", id)
	// Before the database is asked, which cannot read all of what HTTP cannot carry, and would be asked forever.
	if err := checkHeaders(headers); err != nil {
		return answer{}, err
	}
	resolved, err := w.withSecrets(ctx, asked)
	if err != nil {
		return answer{}, err
	}
	for name, value := range resolved {
		headers.Set(name, value)
	}
	headers.Set("Idempotency-Key", id)
	if err := checkHeaders(headers); err != nil {
		return answer{}, err
	}
	return w.call(asked, headers)
}

// read takes the call out of an envelope.
func (w *worker) read(data []byte) (envelope, error) {
	asked := envelope{Method: http.MethodPost, TimeoutMS: w.config.requestTimeout}
	if err := json.Unmarshal(data, &asked); err != nil {
		return asked, cannot("the envelope cannot be read: %w", err)
	}
	target, err := url.Parse(asked.URL)
	if err != nil || target.Host == "" || target.Scheme != "http" && target.Scheme != "https" {
		return asked, cannot("the envelope cannot be read: webhook_url %q is neither http nor https", asked.URL)
	}
	if asked.TimeoutMS < 1 || asked.TimeoutMS > 3_600_000 {
		return asked, cannot("the envelope cannot be read: timeout_ms is %d", asked.TimeoutMS)
	}
	return asked, nil
}

// withSecrets gives the headers with secrets in their places, none if they have no secrets: in the envelope they stand by
// name, only the database has their values.
func (w *worker) withSecrets(ctx context.Context, asked envelope) (headers map[string]string, err error) {
	text, err := json.Marshal(asked.Headers)
	if err != nil || !strings.Contains(string(text), "{{secret:") {
		return nil, err
	}
	for {
		limited, cancel := context.WithTimeout(ctx, patience)
		row := w.database.QueryRow(limited, "select jetstream.webhook_headers($1, $2, $3)", asked.Webhook, text, asked.URL)
		err := row.Scan(&headers)
		cancel()
		var refused *pgconn.PgError
		if err == nil {
			return headers, nil
		} else if errors.As(err, &refused) && slices.Contains(denied, refused.Code) {
			return nil, cannot("%s", refused.Message)
		} else if ctx.Err() != nil {
			return nil, errors.New("the worker stopped before the database gave the secrets")
		}
		// A database that cannot give them uses up no attempt.
		log.Printf("no secrets from the database: %v", err)
		time.Sleep(time.Second)
	}
}

// delay is exponential, half of it random, and as long as the endpoint asks for if that is longer.
func (w *worker) delay(attempts uint64, retryAfter string) time.Duration {
	backoff := float64(w.config.backoffBase) * math.Pow(2, float64(attempts-1))
	delay := time.Duration(min(backoff, float64(w.config.backoffCap)) * (0.5 + rand.Float64()/2))
	var asked time.Duration
	if seconds, err := strconv.ParseUint(retryAfter, 10, 31); err == nil {
		asked = time.Duration(seconds) * time.Second
	} else if until, err := http.ParseTime(retryAfter); err == nil {
		asked = time.Until(until)
	}
	return max(delay, min(asked, w.config.retryAfterCap))
}

func messageID(message jetstream.Msg, info *jetstream.MsgMetadata) string {
	if id := message.Headers().Get("Nats-Msg-Id"); id != "" {
		return id
	}
	return fmt.Sprintf("%s:%d", info.Stream, info.Sequence.Stream)
}
