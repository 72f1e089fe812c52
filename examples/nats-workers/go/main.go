// Makes the HTTP calls of webhooks from NATS JetStream. Any number of workers share one durable consumer.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// Limit for the last report, whatever the database does.
	lastReport = 5 * time.Second
	// Limit for what is left to send to NATS, and for closing the connections to the database.
	farewell = 2 * time.Second
)

func main() {
	if err := loadEnv(".env"); err != nil {
		log.Fatal(err)
	}
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
	pool, err := pgxpool.ParseConfig(c.databaseURL)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	if pool.ConnConfig.ConnectTimeout == 0 {
		pool.ConnConfig.ConnectTimeout = patience / 2
	}
	database, err := pgxpool.NewWithConfig(context.Background(), pool)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	defer within(farewell, database.Close)

	w := &worker{config: c, js: js, database: database, client: newClient(c)}
	w.statistics = newStatistics(c, database, w.waiting)
	listener, err := listen(c.httpListen)
	if err != nil {
		return err
	}
	if listener != nil {
		server := &http.Server{Handler: w.pages(ctx, connection), ReadHeaderTimeout: 10 * time.Second}
		go func() {
			if err := server.Serve(listener); err != http.ErrServerClosed {
				log.Fatal(err)
			}
		}()
		defer server.Close()
		log.Printf("/health, /ready and /metrics are at http://%s/", listener.Addr())
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
	if !within(c.shutdownTimeout, pulls.Wait) {
		log.Printf("calls still in flight after %v are left to the other workers", c.shutdownTimeout)
	}
	endReports()
	if !within(lastReport, reporting.Wait) {
		log.Printf("the last report did not reach the database within %v", lastReport)
	}
	// Acknowledgements that are still in the buffer.
	_ = connection.FlushTimeout(farewell)
	log.Print(w.statistics.summary())
	return nil
}

// Without HTTP_LISTEN the first free one of these ports is taken, so that several workers run on one machine.
const (
	firstPort = 8080
	lastPort  = 8099
)

// listen gives nil if there is nothing to listen on.
func listen(address *string) (net.Listener, error) {
	if address != nil && *address == "" {
		return nil, nil
	} else if address != nil {
		listener, err := net.Listen("tcp", *address)
		if err != nil {
			return nil, fmt.Errorf("HTTP_LISTEN %s: %w", *address, err)
		}
		return listener, nil
	}
	for port := firstPort; port <= lastPort; port++ {
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
	}
	log.Printf("no /health, /ready and /metrics: ports %d to %d are in use; set HTTP_LISTEN", firstPort, lastPort)
	return nil, nil
}

// within does something for as long as it may take, and tells whether it came to its end.
func within(limit time.Duration, do func()) bool {
	done := make(chan struct{})
	go func() { do(); close(done) }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}

// answers finds out whether the database does.
func (w *worker) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return w.database.Ping(ctx)
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
		} else if err := w.answers(request.Context()); err != nil {
			http.Error(out, fmt.Sprintf("database: %v", err), http.StatusServiceUnavailable)
		} else {
			fmt.Fprintln(out, "ready")
		}
	})
	return pages
}
