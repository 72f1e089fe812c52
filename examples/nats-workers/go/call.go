package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const maxRedirects = 5

// Sent on when a redirect leads to another server; what else a webhook's headers hold is for the first one alone.
var forAnyServer = []string{"Content-Type", "Idempotency-Key", "Traceparent", "Tracestate"}

var (
	headerName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
	headerValue = regexp.MustCompile(`^[^\x00-\x08\x0a-\x1f\x7f]*$`)
	// What some resolvers take for an IPv4 address that netip does not know: 2130706433, 0x7f.1.
	oddNumber = regexp.MustCompile(`(?i)(^|\.)(0x[0-9a-f]*|[0-9]+)\.?$`)
)

// Not on the public internet, of which IPv6 is 2000::/3.
var private = parse("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
	"192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
	"224.0.0.0/4", "240.0.0.0/4", "::/3", "4000::/2", "8000::/1", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")

func parse(networks ...string) (list []netip.Prefix) {
	for _, network := range networks {
		list = append(list, netip.MustParsePrefix(network))
	}
	return list
}

func contains(networks []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(networks, func(network netip.Prefix) bool { return network.Contains(address) })
}

// An impossible call cannot be made, neither now nor later.
type impossible struct{ error }

func cannot(format string, values ...any) error { return impossible{fmt.Errorf(format, values...)} }

// check refuses private addresses that are not allowed.
func (c *config) check(address netip.Addr) error {
	address = address.Unmap().WithZone("")
	if contains(private, address) && !contains(c.allowedNetworks, address) {
		return cannot("%s may not be called: it is not a public address", address)
	}
	return nil
}

// newClient makes one that looks at the address of the very connection that is made, so that a name that resolves to
// something else the next time gets nowhere.
func newClient(c config) *http.Client {
	dialer := &net.Dialer{Timeout: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		found, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		return c.check(found.Addr())
	}}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 30 * time.Second,
			MaxIdleConnsPerHost: c.batchSize, IdleConnTimeout: 90 * time.Second,
		},
		// Redirects are followed by call.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// An answer to a call.
type answer struct {
	status               int
	location, retryAfter string
}

// call makes one HTTP call, redirects included.
func (w *worker) call(asked envelope, headers http.Header) (answer, error) {
	limit := time.Duration(asked.TimeoutMS) * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	target, err := url.Parse(asked.URL)
	if err != nil {
		return answer{}, impossible{err}
	}
	for redirects := 0; ; redirects++ {
		got, err := w.once(ctx, target, asked, headers)
		if errors.Is(err, context.DeadlineExceeded) {
			return got, fmt.Errorf("no answer within %v", limit)
		}
		// The other redirects would change the method and drop the body.
		next, wrong := target.Parse(got.location)
		if err != nil || got.status != 307 && got.status != 308 || got.location == "" || wrong != nil {
			return got, err
		}
		if redirects == maxRedirects {
			return got, cannot("more than %d redirects", maxRedirects)
		}
		if next.Scheme != target.Scheme || next.Host != target.Host {
			kept := http.Header{}
			for _, name := range forAnyServer {
				if values := headers.Values(name); values != nil {
					kept[name] = values
				}
			}
			headers = kept
		}
		target = next
	}
}

func (w *worker) once(ctx context.Context, target *url.URL, asked envelope, headers http.Header) (answer, error) {
	if target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
		return answer{}, cannot("%q is neither http nor https", target)
	}
	// Before the connection, which a machine without IPv6 would not even try.
	if address, err := netip.ParseAddr(target.Hostname()); err == nil {
		if err := w.config.check(address); err != nil {
			return answer{}, err
		}
	} else if oddNumber.MatchString(target.Hostname()) {
		return answer{}, cannot("%s may not be called: it is an oddly written address", target.Hostname())
	}
	var body io.Reader
	if asked.Method != http.MethodGet {
		body = bytes.NewReader(asked.Data)
	}
	request, err := http.NewRequestWithContext(ctx, asked.Method, target.String(), body)
	if err != nil {
		return answer{}, impossible{err}
	}
	// With it, and an Idempotency-Key, the client would send a request anew by itself.
	request.GetBody = nil
	request.Header = headers.Clone()
	if host := headers.Get("Host"); host != "" {
		request.Host = host
	}
	response, err := w.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	// Read to its end, the connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, w.config.maxResponseBytes))
	return answer{response.StatusCode, response.Header.Get("Location"), response.Header.Get("Retry-After")}, nil
}

// checkHeaders finds what HTTP cannot carry, and the client would complain of only when it has connected.
func checkHeaders(headers http.Header) error {
	for name, values := range headers {
		if !headerName.MatchString(name) || !headerValue.MatchString(strings.Join(values, "")) {
			return cannot("header %q is not valid", name)
		}
	}
	return nil
}
