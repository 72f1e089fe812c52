package main

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// What the environment says. The README lists the variables.
type config struct {
	natsURL, natsUser, natsPass string
	databaseURL                 string
	stream, subject             string
	name                        string // this worker's in the statistics
	consumer                    string // the durable one that all workers share
	batchSize                   int    // calls in flight at once
	maxDeliver                  int
	maxAckPending               int
	ackWait                     time.Duration
	backoffBase, backoffCap     time.Duration
	retryAfterCap               time.Duration
	requestTimeout              int // milliseconds
	deadLetterStream            string
	deadLetterSubject           string        // begins that of each dead letter
	deadLetterMaxAge            time.Duration // 0: for ever
	allowedNetworks             []netip.Prefix
	maxResponseBytes            int64
	statsInterval               time.Duration
	httpListen                  *string // nil: the first free port
	shutdownTimeout             time.Duration
}

func readConfig() (c config, err error) {
	text := func(name, byDefault string) string {
		if value := os.Getenv(name); value != "" {
			return value
		}
		return byDefault
	}
	number := func(name string, byDefault, least, most int) int {
		value, wrong := strconv.Atoi(text(name, strconv.Itoa(byDefault)))
		if wrong != nil || value < least || value > most {
			err = fmt.Errorf("%s=%s is not a whole number from %d to %d", name, os.Getenv(name), least, most)
		}
		return value
	}
	milliseconds := func(name string, byDefault, least, most int) time.Duration {
		return time.Duration(number(name, byDefault, least, most)) * time.Millisecond
	}
	c = config{
		natsURL:          text("NATS_URL", "nats://localhost:4222"),
		natsUser:         os.Getenv("NATS_USER"),
		natsPass:         os.Getenv("NATS_PASS"),
		databaseURL:      text("DATABASE_URL", "postgresql://localhost/postgres"),
		stream:           text("STREAM_NAME", "WEBHOOKS"),
		name:             text("CONSUMER_NAME", "webhook-worker-1"),
		consumer:         text("QUEUE_GROUP", "webhook-workers"),
		subject:          text("SUBJECT", "webhooks.*"),
		batchSize:        number("BATCH_SIZE", 10, 1, 10_000),
		maxDeliver:       number("MAX_DELIVER", 3, 1, 1_000),
		ackWait:          milliseconds("ACK_WAIT_MS", 30_000, 100, 3_600_000),
		backoffBase:      milliseconds("BACKOFF_BASE_MS", 1_000, 1, 86_400_000),
		backoffCap:       milliseconds("BACKOFF_CAP_MS", 300_000, 1, 86_400_000),
		maxAckPending:    number("MAX_ACK_PENDING", 10_000, 1, 10_000_000),
		retryAfterCap:    milliseconds("RETRY_AFTER_CAP_MS", 3_600_000, 0, 86_400_000),
		requestTimeout:   number("REQUEST_TIMEOUT_MS", 30_000, 1, 3_600_000),
		maxResponseBytes: int64(number("MAX_RESPONSE_BYTES", 65_536, 0, 1<<30)),
		statsInterval:    milliseconds("STATS_INTERVAL_MS", 10_000, 10, 3_600_000),
		shutdownTimeout:  milliseconds("SHUTDOWN_TIMEOUT_MS", 30_000, 0, 3_600_000),
	}
	c.deadLetterStream = text("DEAD_LETTER_STREAM", c.stream+"_DEAD")
	c.deadLetterMaxAge = milliseconds("DEAD_LETTER_MAX_AGE_MS", 2_592_000_000, 0, 315_360_000_000)
	c.deadLetterSubject = text("DEAD_LETTER_SUBJECT", "dead_letters."+c.stream)
	if listen, set := os.LookupEnv("HTTP_LISTEN"); set {
		c.httpListen = &listen
	}
	var wrong error
	if c.allowedNetworks, wrong = networks(text("ALLOW_PRIVATE_ADDRESSES", "false")); wrong != nil {
		err = fmt.Errorf("ALLOW_PRIVATE_ADDRESSES is neither true nor false nor a list of networks such as 10.0.0.0/8: %w", wrong)
	}
	return c, err
}

// networks: `false` is none, `true` is all.
func networks(text string) (list []netip.Prefix, err error) {
	switch text {
	case "false":
		return nil, nil
	case "true":
		text = "0.0.0.0/0,::/0"
	}
	for _, each := range strings.Split(text, ",") {
		network, err := netip.ParsePrefix(strings.TrimSpace(each))
		if err != nil {
			address, err := netip.ParseAddr(strings.TrimSpace(each))
			if err != nil {
				return nil, err
			}
			network = netip.PrefixFrom(address, address.BitLen())
		}
		list = append(list, network)
	}
	return list, nil
}
