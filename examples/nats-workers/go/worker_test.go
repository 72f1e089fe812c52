package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func testWorker(t *testing.T, allowed string) *worker {
	t.Helper()
	c, err := readConfig()
	if err != nil {
		t.Fatal(err)
	}
	if c.allowedNetworks, err = networks(allowed); err != nil {
		t.Fatal(err)
	}
	return &worker{config: c, client: newClient(c)}
}

func TestDefaultsAreThoseOfTheReadme(t *testing.T) {
	c := testWorker(t, "false").config
	got := []string{c.natsURL, c.databaseURL, c.stream, c.name, c.consumer, c.subject, c.deadLetterStream, c.deadLetterSubject}
	want := "nats://localhost:4222 postgresql://localhost/postgres WEBHOOKS webhook-worker-1 webhook-workers webhooks.* " +
		"WEBHOOKS_DEAD dead_letters.WEBHOOKS"
	if strings.Join(got, " ") != want || c.batchSize != 10 || c.maxDeliver != 3 || c.httpListen != nil {
		t.Errorf("%v %+v", got, c)
	}
}

func TestEnvFileSaysWhatTheEnvironmentDoesNot(t *testing.T) {
	file := filepath.Join(t.TempDir(), ".env")
	text := "# settings of this worker\r\nSTREAM_NAME=HOOKS\r\nCONSUMER_NAME=from-file\r\nHTTP_LISTEN=127.0.0.1:1\r\n" +
		"NATS_PASS='pa#ss $word'\r\nexport BATCH_SIZE=50   # calls\r\nDATABASE_URL=\"postgresql://u@h/db?sslmode=disable\"\r\n" +
		"  SUBJECT = first\nSUBJECT=`webhooks.>`\nnot a setting\nNATS_USER=\"a\\nb\"\nQUEUE_GROUP=\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"STREAM_NAME", "NATS_PASS", "BATCH_SIZE", "DATABASE_URL", "SUBJECT", "NATS_USER", "QUEUE_GROUP"} {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
	t.Setenv("CONSUMER_NAME", "from-environment")
	t.Setenv("HTTP_LISTEN", "")
	if err := loadEnv(file); err != nil {
		t.Fatal(err)
	}
	c := testWorker(t, "false").config
	got := []string{c.stream, c.deadLetterStream, c.name, *c.httpListen, c.natsPass, c.databaseURL, c.subject, c.natsUser, c.consumer}
	want := []string{"HOOKS", "HOOKS_DEAD", "from-environment", "", "pa#ss $word", "postgresql://u@h/db?sslmode=disable",
		"webhooks.>", "a\nb", "webhook-workers"}
	for n := range want {
		if got[n] != want[n] {
			t.Errorf("%q instead of %q", got[n], want[n])
		}
	}
	if c.batchSize != 50 {
		t.Errorf("BATCH_SIZE is %d", c.batchSize)
	}
	if err := loadEnv(filepath.Join(t.TempDir(), ".env")); err != nil {
		t.Errorf("there need be no file: %v", err)
	}
}

func TestValuesThatMakeNoSenseAreRefusedByName(t *testing.T) {
	for name, value := range map[string]string{"BATCH_SIZE": "0", "MAX_DELIVER": "three", "ALLOW_PRIVATE_ADDRESSES": "yes"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			if _, err := readConfig(); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestPrivateAddressesAreRefused(t *testing.T) {
	c := testWorker(t, "127.0.0.1/32").config
	for address, refused := range map[string]bool{
		"127.0.0.1": false, "8.8.8.8": false, "2606:4700::1111": false, "::ffff:127.0.0.1": false,
		"127.0.0.2": true, "10.1.2.3": true, "169.254.169.254": true, "::1": true, "::ffff:10.0.0.1": true, "fd00::1": true,
		"fe80::1": true, "0.0.0.0": true, "100.64.0.1": true, "64:ff9b::7f00:1": true,
	} {
		var never impossible
		if err := c.check(netip.MustParseAddr(address)); errors.As(err, &never) != refused {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestCallsAndRedirects(t *testing.T) {
	var seen []*http.Request
	handler := http.HandlerFunc(func(out http.ResponseWriter, request *http.Request) {
		seen = append(seen, request)
		if to := request.URL.Query().Get("to"); to != "" {
			out.Header().Set("Location", to)
			out.WriteHeader(http.StatusTemporaryRedirect)
		} else if request.URL.Path == "/busy" {
			out.Header().Set("Retry-After", "7")
			out.WriteHeader(http.StatusTooManyRequests)
		}
	})
	server, elsewhere := httptest.NewServer(handler), httptest.NewServer(handler)
	defer server.Close()
	defer elsewhere.Close()
	w := testWorker(t, "127.0.0.1/32")
	made := func(path string) (answer, error) {
		seen = nil
		asked := envelope{URL: server.URL + path, Method: "POST", Data: json.RawMessage("{}"), TimeoutMS: 5000}
		return w.call(asked, http.Header{"Authorization": {"secret"}, "Idempotency-Key": {"k"}})
	}
	if got, err := made("/busy"); err != nil || got.status != 429 || got.retryAfter != "7" {
		t.Errorf("%+v %v", got, err)
	}
	if got, err := made("/?to=/moved"); err != nil || got.status != 200 || seen[1].Method != "POST" ||
		seen[1].Header.Get("Authorization") != "secret" {
		t.Errorf("%+v %v %+v", got, err, seen)
	}
	if _, err := made("/?to=" + url.QueryEscape(elsewhere.URL)); err != nil || seen[1].Header.Get("Authorization") != "" ||
		seen[1].Header.Get("Idempotency-Key") != "k" {
		t.Errorf("%v %+v", err, seen)
	}
	var never impossible
	for _, inside := range []string{"http://127.0.0.2:1/", "http://2130706433/", "http://0x7f.1/", "ftp://127.0.0.1/"} {
		if _, err := made("/?to=" + url.QueryEscape(inside)); !errors.As(err, &never) {
			t.Errorf("%s: %v", inside, err)
		}
	}
}

func TestEnvelopes(t *testing.T) {
	w := testWorker(t, "false")
	asked, err := w.read([]byte(`{"webhook_url": "http://h/", "data": {"n": 9007199254740993}, "headers": {"A": 1.0, "B": ["x", true]}}`))
	if err != nil || asked.Method != "POST" || asked.TimeoutMS != 30_000 || string(asked.Data) != `{"n": 9007199254740993}` ||
		asked.Headers["A"] != "1.0" || asked.Headers["B"] != "x, true" {
		t.Errorf("%+v %v", asked, err)
	}
	for _, text := range []string{
		`text`, `[1]`, `{}`, `{"webhook_url": "ftp://h/"}`, `{"webhook_url": "http://h/", "headers": {"X": null}}`,
		`{"webhook_url": "http://h/", "timeout_ms": 0}`, `{"webhook_url": "http://h/", "webhook_id": 3000000000}`,
	} {
		var never impossible
		if _, err := w.read([]byte(text)); !errors.As(err, &never) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if checkHeaders(http.Header{"X": {"a\r\nb"}}) == nil || checkHeaders(http.Header{"X y": {"a"}}) == nil {
		t.Error("HTTP cannot carry these headers")
	}
}

func TestDelays(t *testing.T) {
	w := testWorker(t, "false")
	for _, each := range []struct {
		attempts    uint64
		retryAfter  string
		least, most time.Duration
	}{
		{1, "", 500 * time.Millisecond, time.Second}, {3, "", 2 * time.Second, 4 * time.Second},
		{30, "", 150 * time.Second, 300 * time.Second}, {1, "7", 7 * time.Second, 7 * time.Second},
		{1, "999999", time.Hour, time.Hour}, {1, "soon", 500 * time.Millisecond, time.Second},
		{1, time.Now().Add(time.Minute).UTC().Format(http.TimeFormat), 58 * time.Second, time.Minute},
	} {
		if delay := w.delay(each.attempts, each.retryAfter); delay < each.least || delay > each.most {
			t.Errorf("%+v: %v", each, delay)
		}
	}
}

func TestSummary(t *testing.T) {
	got := totals{delivered: 200, succeeded: 180, retried: 15, dead: 5, milliseconds: 800}.summary(90 * time.Second)
	want := "📊 Statistics:\n   Processed: 200\n   Succeeded: 180\n   Failed: 20\n   Avg Time: 4.00ms\n   Uptime: 90s"
	if got != want {
		t.Errorf("%s", got)
	}
	if got := (totals{}).summary(0); !strings.Contains(got, "Avg Time: 0.00ms") {
		t.Errorf("%s", got)
	}
}

func TestASecondWorkerTakesTheNextPort(t *testing.T) {
	first, err := listen(nil)
	if err != nil || first == nil {
		t.Fatalf("%v %v", first, err)
	}
	defer first.Close()
	second, err := listen(nil)
	if err != nil || second == nil {
		t.Fatalf("%v %v", second, err)
	}
	defer second.Close()
	address := first.Addr().String()
	if address == second.Addr().String() {
		t.Errorf("both at %s", address)
	}
	if _, err := listen(&address); err == nil || !strings.Contains(err.Error(), "HTTP_LISTEN "+address) {
		t.Errorf("%v", err)
	}
	none := ""
	if listener, err := listen(&none); listener != nil || err != nil {
		t.Errorf("%v %v", listener, err)
	}
}
