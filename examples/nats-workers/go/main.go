// Makes the HTTP calls of webhooks from NATS JetStream. Any number of workers share one durable consumer.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func main() {
	c, err := readConfig()
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, c); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, c config) error {
	options := []nats.Option{nats.Name(c.name), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.PingInterval(10 * time.Second)}
	if c.natsUser != "" {
		options = append(options, nats.UserInfo(c.natsUser, c.natsPass))
	}
	connection, err := nats.Connect(c.natsURL, options...)
	if err != nil {
		return fmt.Errorf("NATS at %s: %w", c.natsURL, err)
	}
	defer connection.Close()
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	database, err := pgxpool.New(context.Background(), c.databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer database.Close()

	w := &worker{config: c, js: js, database: database, client: newClient(c)}
	w.statistics = newStatistics(c, database, w.waiting)
	if c.httpListen != "" {
		server := &http.Server{Addr: c.httpListen, Handler: w.pages(ctx, connection), ReadHeaderTimeout: 10 * time.Second}
		go func() {
			if err := server.ListenAndServe(); err != http.ErrServerClosed {
				log.Fatal(err)
			}
		}()
		defer server.Close()
	}

	log.Printf("%s takes %s from %s as %s", c.name, c.subject, c.stream, c.consumer)
	var pulls sync.WaitGroup
	for range c.batchSize {
		pulls.Go(func() { w.pull(ctx) })
	}
	reports, endReports := context.WithCancel(context.Background())
	var reporting sync.WaitGroup
	reporting.Go(func() { w.statistics.run(reports) })

	<-ctx.Done()
	done := make(chan struct{})
	go func() { pulls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(c.shutdownTimeout):
		log.Printf("calls still in flight after %v are left to the other workers", c.shutdownTimeout)
	}
	endReports()
	reporting.Wait()
	// Acknowledgements that are still in the buffer.
	_ = connection.FlushTimeout(2 * time.Second)
	return nil
}

// pages: /health while the process runs, /ready while it can work, /metrics for Prometheus.
func (w *worker) pages(ctx context.Context, connection *nats.Conn) http.Handler {
	pages := http.NewServeMux()
	pages.HandleFunc("/health", func(out http.ResponseWriter, _ *http.Request) { fmt.Fprintln(out, "ok") })
	pages.HandleFunc("/metrics", func(out http.ResponseWriter, _ *http.Request) { w.statistics.metrics(out) })
	pages.HandleFunc("/ready", func(out http.ResponseWriter, request *http.Request) {
		if ctx.Err() != nil {
			http.Error(out, "stopping", http.StatusServiceUnavailable)
		} else if !connection.IsConnected() {
			http.Error(out, "not connected to NATS", http.StatusServiceUnavailable)
		} else if err := w.database.Ping(request.Context()); err != nil {
			http.Error(out, fmt.Sprintf("database: %v", err), http.StatusServiceUnavailable)
		} else {
			fmt.Fprintln(out, "ready")
		}
	})
	return pages
}
