package walcast

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
)

// Version of this package.
const Version = "0.1.0"

// UnaryDeadline is the deadline of unary calls. Streams have none.
const UnaryDeadline = 30 * time.Second

const identification = "walcast-go/" + Version

// TLS says how to connect with TLS. Files are PEM and read anew for each connection, so that renewed certificates are used.
type TLS struct {
	// CA holds the authorities to trust; the system's where empty.
	CA string
	// Cert and Key are the client's certificate chain and key, for mutual TLS.
	Cert, Key string
	// ServerName is the name that the hub's certificate must have, where it is not the host.
	ServerName string
}

// Options are what a [Client] needs besides the address.
type Options struct {
	// TLS asks for it, as https:// in the address does.
	TLS *TLS
	// Token gives a bearer token and is asked for each connection; nil for none. [StaticToken] is always the same.
	Token func(context.Context) (string, error)
	// MaxMessageBytes is the largest response that is received; 0 is 64 MiB.
	MaxMessageBytes uint32
	// Logger is told about connections; nil is [slog.Default].
	Logger *slog.Logger
}

// StaticToken is a token that does not change.
func StaticToken(token string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) { return token, nil }
}

// target is where the hub is and how to get in.
type target struct {
	address string
	options Options
}

func parseTarget(address string, options Options) (*target, error) {
	parts, err := url.Parse(address)
	if err == nil && (parts.Scheme == "http" || parts.Scheme == "https") {
		port := parts.Port()
		if port == "" {
			port = map[string]string{"http": "50051", "https": "443"}[parts.Scheme]
		}
		address = net.JoinHostPort(parts.Hostname(), port)
		if parts.Scheme == "https" && options.TLS == nil {
			options.TLS = &TLS{}
		} else if parts.Scheme == "http" && options.TLS != nil {
			return nil, errors.New("walcast: TLS needs https://, or an address without a scheme")
		}
	} else if err == nil && parts.Host != "" {
		return nil, fmt.Errorf("walcast: %s: the scheme is http or https", address)
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("walcast: %w", err)
	}
	if options.MaxMessageBytes == 0 {
		options.MaxMessageBytes = 64 << 20
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	ip := net.ParseIP(host)
	if options.Token != nil && options.TLS == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		options.Logger.Warn("the token goes over the network in clear text: use TLS", "address", address)
	}
	return &target{address, options}, nil
}

// credentials are read anew, so that renewed certificates are used.
func (t *target) credentials() (credentials.TransportCredentials, error) {
	settings := t.options.TLS
	if settings == nil {
		return insecure.NewCredentials(), nil
	}
	config := &tls.Config{ServerName: settings.ServerName, MinVersion: tls.VersionTLS12}
	if settings.CA != "" {
		pem, err := os.ReadFile(settings.CA)
		if err != nil {
			return nil, fmt.Errorf("walcast: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("walcast: %s holds no certificate", settings.CA)
		}
	}
	if settings.Cert != "" || settings.Key != "" {
		pair, err := tls.LoadX509KeyPair(settings.Cert, settings.Key)
		if err != nil {
			return nil, fmt.Errorf("walcast: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(config), nil
}

// dial makes a connection that is shared with nobody. It connects when it is used.
func (t *target) dial() (*grpc.ClientConn, error) {
	secure, err := t.credentials()
	if err != nil {
		return nil, err
	}
	connection, err := grpc.NewClient("dns:///"+t.address,
		grpc.WithTransportCredentials(secure),
		grpc.WithUserAgent(identification),
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(int(t.options.MaxMessageBytes))),
	)
	if err != nil {
		return nil, fmt.Errorf("walcast: %w", err)
	}
	return connection, nil
}

// call gives a context with the metadata of a call.
func (t *target) call(ctx context.Context) (context.Context, error) {
	pairs := []string{"client-id", identification}
	if t.options.Token != nil {
		token, err := t.options.Token(ctx)
		if err != nil {
			return nil, fmt.Errorf("walcast: the token: %w", err)
		}
		pairs = append(pairs, "authorization", "Bearer "+token)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...), nil
}
