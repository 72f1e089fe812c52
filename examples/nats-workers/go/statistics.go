package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const reportEveryMessages = 100

type totals struct {
	delivered, succeeded, retried, dead, redelivered int64
	milliseconds                                     float64
}

// What this worker has done, and its reports of it to PostgreSQL.
type statistics struct {
	config   config
	database *pgxpool.Pool
	waiting  func() *uint64 // how many messages wait for the consumer; nil if it cannot tell
	due      chan struct{}
	started  time.Time

	mutex    sync.Mutex
	total    totals
	reported totals
}

func newStatistics(c config, database *pgxpool.Pool, waiting func() *uint64) *statistics {
	return &statistics{
		config: c, database: database, waiting: waiting, due: make(chan struct{}, 1), started: time.Now(),
	}
}

// count: one delivery is done with.
func (s *statistics) count(deliveries uint64, outcome func(*totals), took time.Duration) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.total.delivered++
	if deliveries > 1 {
		s.total.redelivered++
	}
	outcome(&s.total)
	s.total.milliseconds += float64(took.Microseconds()) / 1000
	if s.total.delivered%reportEveryMessages == 0 {
		log.Print(s.total.summary(time.Since(s.started)))
	}
	if s.total.delivered-s.reported.delivered >= reportEveryMessages {
		select {
		case s.due <- struct{}{}:
		default:
		}
	}
}

// run reports every 100 messages or STATS_INTERVAL_MS, and once more when the context ends.
func (s *statistics) run(ctx context.Context) {
	ticker := time.NewTicker(s.config.statsInterval)
	defer ticker.Stop()
	for {
		select {
		case <-s.due:
		case <-ticker.C:
		case <-ctx.Done():
			s.report(false)
			return
		}
		s.report(true)
	}
}

// report sends the difference since the last report that went well.
func (s *statistics) report(active bool) {
	pending := s.waiting()
	s.mutex.Lock()
	now, before := s.total, s.reported
	s.mutex.Unlock()
	delivered := now.delivered - before.delivered
	var average *float64
	if delivered > 0 {
		value := (now.milliseconds - before.milliseconds) / float64(delivered)
		average = &value
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := s.database.Exec(ctx,
		`select jetstream.rule_nats_consumer_update_stats($1, $2, $3, $4, $5, $6::pg_catalog.float8::pg_catalog.numeric, $7, $8,
			$9, $10, $11)`,
		s.config.stream, s.config.name, delivered, now.succeeded-before.succeeded, pending, average,
		now.redelivered-before.redelivered, active, s.config.consumer, "explicit", s.config.maxDeliver)
	if err != nil {
		log.Printf("statistics not reported, kept for the next report: %v", err)
		return
	}
	s.mutex.Lock()
	s.reported = now
	s.mutex.Unlock()
}

// summary is for the log: every 100 messages, and when the worker ends.
func (s *statistics) summary() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.total.summary(time.Since(s.started))
}

func (t totals) summary(uptime time.Duration) string {
	average := t.milliseconds / float64(max(t.delivered, 1))
	return fmt.Sprintf("📊 Statistics:\n   Processed: %d\n   Succeeded: %d\n   Failed: %d\n   Avg Time: %.2fms\n   Uptime: %.0fs",
		t.delivered, t.succeeded, t.delivered-t.succeeded, average, uptime.Seconds())
}

// metrics writes the totals in the text format of Prometheus.
func (s *statistics) metrics(out io.Writer) {
	s.mutex.Lock()
	t := s.total
	s.mutex.Unlock()
	fmt.Fprintln(out, "# TYPE webhook_worker_calls_total counter")
	line := func(outcome string, value int64) {
		fmt.Fprintf(out, "webhook_worker_calls_total{source=\"nats\",outcome=\"%s\"} %d\n", outcome, value)
	}
	line("succeeded", t.succeeded)
	line("retried", t.retried)
	line("dead", t.dead)
	fmt.Fprintf(out, "# TYPE webhook_worker_redelivered_total counter\nwebhook_worker_redelivered_total %d\n", t.redelivered)
}
